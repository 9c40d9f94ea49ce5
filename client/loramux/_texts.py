"""Methods of the blocking client that process texts without generating any."""

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
    """Classifies, embeds and tokenizes texts, and answers questions about them."""

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
        priority: int = 0,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
    ) -> Classification:
        """Classify `texts` with an adapter trained for that.

        Args:
            texts: One text, or several, each of which may be token ids of the base model, or a pair
                of texts: `[("a premise", "a hypothesis"), …]`.
            adapter: Reference to the adapter, as for `generate`.
            top_k: Number of labels to return for each text or token; None means all of a text and
                one of a token.
            logits: Include the logits of all labels.
            timeout: Timeout of the call in seconds.
            request_id: Identifies the request in responses and logs.
            routing_key: Selects the version if the alias splits traffic.
            priority: Order among the requests of your tenant; lower goes first.
            parse_special_tokens: Parse text such as `</s>` as special tokens.
            add_special_tokens: Let the tokenizer add its special tokens to each text or pair.
        """
        request = _classification_wire.classify_request(
            texts,
            adapter,
            top_k,
            logits,
            request_id,
            routing_key,
            priority,
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
        priority: int = 0,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
        token_types: bool = False,
    ) -> QuestionAnswering:
        """Find the answers to `question` in `context`, with an adapter trained for that.

        Args:
            question: One question, or several.
            context: The text that contains the answer: one for all questions, or one for each.
            adapter: Reference to the adapter, as for `generate`.
            top_k: Number of answers to return for each question, 1 to 100.
            max_answer_tokens: Maximum length of an answer in tokens, 1 to 512.
            handle_impossible_answer: Allow "no answer".
            align_to_words: Let answers start and end at word boundaries.
            context_first: Put the context before the question, as transformers does if
                `padding_side` of the tokenizer is "left".
            max_window_tokens: Maximum length of question and context together; a longer context is
                split into windows. None refuses one that does not fit the model's context.
            window_overlap_tokens: Tokens of the context that consecutive windows share; None means
                128, or half of `max_window_tokens` if that is less.
            timeout: Timeout of the call in seconds.
            request_id: Identifies the request in responses and logs.
            routing_key: Selects the version if the alias splits traffic.
            priority: Order among the requests of your tenant; lower goes first.
            parse_special_tokens: Parse text such as `</s>` as special tokens.
            add_special_tokens: Put the tokenizer's special tokens before and between the texts.
            token_types: Pass token type ids that mark the second text. Adapters trained with
                transformers' `add_adapter` know them; PEFT's models do not pass them on.
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
            priority,
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
        priority: int = 0,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
    ) -> Embedding:
        """Embed `texts` as vectors pooled from the model's last hidden states.

        Args:
            texts: One text, or up to 64; token ids of the base model are accepted for each of
                several.
            adapter: Reference to the adapter, as for `generate`; None for the base model.
            pooling: How hidden states are pooled: `last`, `mean` or `first`; None takes it from the
                adapter's package, or else from the folder of the base model, or else `last`, or
                `mean` if that has an encoder.
            normalize: Scale each vector to length 1; None takes it from the same places, or else
                True.
            dimensions: Truncate each vector to this many numbers; None means all.
            timeout: Timeout of the call in seconds.
            request_id: Identifies the request in responses and logs.
            routing_key: Selects the version if the alias splits traffic.
            priority: Order among the requests of your tenant; lower goes first.
            parse_special_tokens: Parse text such as `</s>` as special tokens.
            add_special_tokens: Let the tokenizer add its special tokens to each text.
        """
        request = _embedding_wire.embed_request(
            texts,
            adapter,
            pooling,
            normalize,
            dimensions,
            request_id,
            routing_key,
            priority,
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
        """Return the prompt of a `generate` call as token ids, without running the model.

        Args:
            prompt: Text, or token ids of the base model.
            messages: A conversation instead, formatted by the chat template.
            adapter: Reference to the adapter, whose chat template and tokens are used; None for the
                base model alone.
            pieces: Return the bytes of each token, too.
            timeout: Timeout of the call in seconds.
            options: Those of `generate`; only what is part of the prompt has an effect, such as
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
        """Return the text of token ids.

        Args:
            token_ids: The tokens; at most the context length.
            adapter: Reference to the adapter whose own tokens may be among them.
            skip_special_tokens: Omit special tokens such as `</s>`, which otherwise appear by name.
            timeout: Timeout of the call in seconds.
        """
        request = _token_wire.detokenize_request(token_ids, adapter, skip_special_tokens)
        with _wire.raising():
            return self._tokenization.Detokenize(
                request, timeout=self._timeout if timeout is None else timeout
            ).text
