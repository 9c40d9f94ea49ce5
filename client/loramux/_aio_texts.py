"""Methods of the asynchronous client that process texts without generating any."""

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


class AsyncTexts:
    """Classifies, embeds and tokenizes texts, and answers questions about them."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._classification = ClassificationServiceStub(channel)
        self._answers = QuestionAnsweringServiceStub(channel)
        self._embedding = EmbeddingServiceStub(channel)
        self._tokenization = TokenizationServiceStub(channel)
        self._timeout = timeout

    async def classify(
        self,
        texts: str | Sequence[Classified],
        *,
        adapter: str,
        top_k: int | None = None,
        logits: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        request_id: str = "",
        routing_key: str = "",
        priority: int = 0,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
    ) -> Classification:
        """Classify `texts`; see `Client.classify`."""
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
                await self._classification.Classify(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    async def answer(
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
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        request_id: str = "",
        routing_key: str = "",
        priority: int = 0,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
        token_types: bool = False,
    ) -> QuestionAnswering:
        """Find the answers in `context`; see `Client.answer`."""
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
                await self._answers.Answer(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    async def embed(
        self,
        texts: str | Sequence[Text],
        *,
        adapter: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        request_id: str = "",
        routing_key: str = "",
        priority: int = 0,
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
    ) -> Embedding:
        """Embed `texts` as vectors; see `Client.embed`."""
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
                await self._embedding.Embed(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    async def tokenize(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        pieces: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        **options: Unpack[RequestOptions],
    ) -> Tokens:
        """Return the tokens that `generate` would read; see `Client.tokenize`."""
        request = _wire.generate_request(prompt, messages, adapter, **options)
        with _wire.raising():
            return _token_wire.tokens(
                await self._tokenization.Tokenize(
                    _token_wire.tokenize_request(request, pieces),
                    timeout=self._timeout if timeout is None else timeout,
                )
            )

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        adapter: str | None = None,
        skip_special_tokens: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
    ) -> str:
        """Return the text of tokens; see `Client.detokenize`."""
        request = _token_wire.detokenize_request(token_ids, adapter, skip_special_tokens)
        with _wire.raising():
            response = await self._tokenization.Detokenize(
                request, timeout=self._timeout if timeout is None else timeout
            )
            return response.text
