"""What the blocking client does with texts that are read and not continued."""

from collections.abc import Sequence
from typing import Unpack

import grpc

from loramux import _answer_wire, _classification_wire, _embedding_wire, _token_wire, _wire
from loramux._classification_wire import Classified, Text
from loramux.types import (
    Classification,
    Embedding,
    Message,
    QuestionAnswering,
    RequestOptions,
    Tokens,
)
from loramux.v1.classification_pb2_grpc import ClassificationServiceStub
from loramux.v1.embedding_pb2_grpc import EmbeddingServiceStub
from loramux.v1.question_answering_pb2_grpc import QuestionAnsweringServiceStub
from loramux.v1.tokenization_pb2_grpc import TokenizationServiceStub


class Texts:
    """Labels texts, finds answers in them, and makes vectors and tokens of them."""

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        self._classification = ClassificationServiceStub(channel)
        self._answers = QuestionAnsweringServiceStub(channel)
        self._embedding = EmbeddingServiceStub(channel)
        self._tokenization = TokenizationServiceStub(channel)
        self._timeout = timeout

    def classify(
        self,
        texts: str | Sequence[Classified],
        *,
        adapter: str,
        top_k: int | None = None,
        logits: bool = False,
        timeout: float | None = None,
        request_id: str = "",
        routing_key: str = "",
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
    ) -> Classification:
        """Return what an adapter that was trained to classify makes of each of `texts`.

        Args:
            texts: One text, or several, each of which may be token ids of the base model, or a pair
                of texts that are read together: `[("a premise", "a hypothesis"), …]`.
            adapter: Reference to the adapter, as `generate` takes it.
            top_k: How many labels come with each text or token; None means all of a text and one of
                a token.
            logits: Add the logits of all labels.
            timeout: Seconds that the call may take.
            request_id: Names the request in replies and logs.
            routing_key: Chooses the version where an alias stands for several.
            parse_special_tokens: Let text such as `</s>` be a control token.
            add_special_tokens: Let the tokenizer add its own tokens to each text or pair.
        """
        request = _classification_wire.classify_request(
            texts,
            adapter,
            top_k,
            logits,
            request_id,
            routing_key,
            parse_special_tokens,
            add_special_tokens,
        )
        with _wire.raising():
            return _classification_wire.classification(
                self._classification.Classify(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        *,
        adapter: str,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        context_first: bool = False,
        max_window_tokens: int | None = None,
        window_overlap_tokens: int | None = None,
        timeout: float | None = None,
        request_id: str = "",
        routing_key: str = "",
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
        token_types: bool = False,
    ) -> QuestionAnswering:
        """Return where in `context` the answers to `question` are, by an adapter trained for that.

        Args:
            question: One question, or several.
            context: The text in which the answer is: one for all questions, or one for each.
            adapter: Reference to the adapter, as `generate` takes it.
            top_k: How many answers come with each question, from 1 to 100.
            max_answer_tokens: The most tokens that an answer has, from 1 to 512.
            handle_impossible_answer: Let "no answer" be one.
            align_to_words: Let answers begin and end where words do.
            context_first: Put the context before the question, as transformers does where
                `padding_side` of the tokenizer is "left".
            max_window_tokens: How many tokens question and context have together at most; a longer
                context is read in several windows. None refuses one that the model has no room for.
            window_overlap_tokens: Tokens of the context that a window has in common with the one
                before it; None means 128, or half of `max_window_tokens` if that is less.
            timeout: Seconds that the call may take.
            request_id: Names the request in replies and logs.
            routing_key: Chooses the version where an alias stands for several.
            parse_special_tokens: Let text such as `</s>` be a control token.
            add_special_tokens: Put the tokenizer's own tokens before and between the texts.
            token_types: Tell the model which tokens are of the second text. Adapters know of it if
                they were trained by transformers' `add_adapter`; models of PEFT do not pass it on.
        """
        request = _answer_wire.answer_request(
            question,
            context,
            adapter,
            top_k,
            max_answer_tokens,
            handle_impossible_answer,
            align_to_words,
            context_first,
            max_window_tokens,
            window_overlap_tokens,
            request_id,
            routing_key,
            parse_special_tokens,
            add_special_tokens,
            token_types,
        )
        with _wire.raising():
            return _answer_wire.question_answering(
                self._answers.Answer(request, timeout=self._timeout if timeout is None else timeout)
            )

    def embed(
        self,
        texts: str | Sequence[Text],
        *,
        adapter: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        timeout: float | None = None,
        request_id: str = "",
        routing_key: str = "",
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
    ) -> Embedding:
        """Return the vector of each of `texts`, made of the model's last hidden states.

        Args:
            texts: One text, or up to 64; token ids of the base model can stand for each of several.
            adapter: Reference to the adapter, as `generate` takes it; None for the base model.
            pooling: How the states of a text become one: `last`, `mean` or `first`; None means what
                the adapter's package says, or else the folder of the base model, or else `last`, or
                `mean` where that has an encoder.
            normalize: Make the length of each vector 1; None means what these say, or else True.
            dimensions: Keep so many of the first numbers of each vector; None means all.
            timeout: Seconds that the call may take.
            request_id: Names the request in replies and logs.
            routing_key: Chooses the version where an alias stands for several.
            parse_special_tokens: Let text such as `</s>` be a control token.
            add_special_tokens: Let the tokenizer add its own tokens to each text.
        """
        request = _embedding_wire.embed_request(
            texts,
            adapter,
            pooling,
            normalize,
            dimensions,
            request_id,
            routing_key,
            parse_special_tokens,
            add_special_tokens,
        )
        with _wire.raising():
            return _embedding_wire.embedding(
                self._embedding.Embed(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    def tokenize(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        pieces: bool = False,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Tokens:
        """Return the tokens that `generate` would read, without running the model.

        Args:
            prompt: Text, or token ids of the base model.
            messages: A conversation instead, rendered by the chat template.
            adapter: Reference to the adapter, whose template and tokens count; None for the base.
            pieces: Return the bytes of each token, too.
            timeout: Seconds that the call may take.
            options: Those of `generate`; of them what becomes part of the prompt counts, such as
                `tools`.
        """
        request = _wire.generate_request(prompt, messages, adapter, **options)
        with _wire.raising():
            return _token_wire.tokens(
                self._tokenization.Tokenize(
                    _token_wire.tokenize_request(request, pieces),
                    timeout=self._timeout if timeout is None else timeout,
                )
            )

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        adapter: str | None = None,
        skip_special_tokens: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Return the text of tokens.

        Args:
            token_ids: At most as many as the context has.
            adapter: Reference to the adapter whose own tokens may be among them.
            skip_special_tokens: Leave out control tokens such as `</s>`, which otherwise appear by
                name.
            timeout: Seconds that the call may take.
        """
        request = _token_wire.detokenize_request(token_ids, adapter, skip_special_tokens)
        with _wire.raising():
            return self._tokenization.Detokenize(
                request, timeout=self._timeout if timeout is None else timeout
            ).text
