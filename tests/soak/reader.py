"""One client of a server whose base is an encoder: the same text has to be the same each time."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import pytest

from loramux.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    ResourceExhaustedError,
)
from loramux.v1 import classification_pb2, embedding_pb2
from loramux.v1.classification_pb2_grpc import ClassificationServiceStub
from loramux.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tests.soak.refused import refused
from tests.soak.worker import TIMEOUT, TOLERANCE, Worker
from tests.support.labelled import TEXTS

PAIRS = tuple((first, second) for first in TEXTS for second in TEXTS)
CLASSIFY = "/loramux.v1.ClassificationService/Classify"


class Reader(Worker):
    """Its methods are the kinds of `mix.READS`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._known: dict[object, Sequence[float]] = {}
        """What was made of a text before."""

    def label(self, adapter: str | None) -> None:
        """Have texts labelled."""
        self._classify(self._setting.labels, TEXTS, lambda result: result.logits)

    def pair(self, adapter: str | None) -> None:
        """Have pairs of texts labelled, which an encoder tells apart."""
        self._classify(self._setting.labels, PAIRS, lambda result: result.logits)

    def tag(self, adapter: str | None) -> None:
        """Have tokens labelled."""
        self._classify(
            self._setting.tags, TEXTS,
            lambda result: [value for token in result.tokens for value in token.logits],
        )  # fmt: skip

    def find(self, adapter: str | None) -> None:
        """Have answers found, in windows where a text is long."""
        assert self._setting.spans
        text = "Bob left in May. " * self._choice.randint(1, 20)
        answers = self._client.answer(
            "Who left?", text, adapter=self._setting.spans, top_k=3, max_window_tokens=60,
            window_overlap_tokens=20, token_types=True,
        ).results[0].answers  # fmt: skip
        self._compare(("find", text), [answer.score for answer in answers])

    def embed(self, adapter: str | None) -> None:
        """Have vectors made of texts."""
        texts = self._choice.choices(TEXTS, k=self._choice.randint(1, 8))
        pooling = self._choice.choice(["last", "mean", "first"])
        vectors = self._client.embed(texts, adapter=adapter, pooling=pooling).vectors
        for text, vector in zip(texts, vectors, strict=True):
            self._compare(("embed", adapter, pooling, text), vector)

    def leave(self, adapter: str | None) -> None:
        """Hang up while texts are read, or have no time for them."""
        texts = self._choice.choices(TEXTS, k=8)
        classify = classification_pb2.ClassifyRequest(adapter=self._setting.labels or "")
        embed = embedding_pb2.EmbedRequest(adapter=adapter or "")
        for text in texts:
            classify.inputs.add(text=text)
            embed.inputs.add(text=text)
        for pause in (0.0, 0.01, 0.1):
            with grpc.insecure_channel(self._server.target) as channel:
                calls: list[Any] = [
                    ClassificationServiceStub(channel).Classify.future(classify, timeout=TIMEOUT),
                    EmbeddingServiceStub(channel).Embed.future(embed, timeout=TIMEOUT),
                ]
                time.sleep(pause)
                for call in calls:
                    call.cancel()
        for seconds in (0.002, 0.02):
            with suppress(DeadlineExceededError, ResourceExhaustedError):
                self._client.embed(texts, timeout=seconds)

    def mistake(self, adapter: str | None) -> None:
        """Ask for what cannot be."""
        client, labels = self._client, self._setting.labels or ""
        nobody = f"nobody-{self._choice.randrange(10**9)}"
        wrong: list[tuple[type[LoramuxError], Callable[[], object]]] = [
            (InvalidArgumentError, lambda: client.classify("a", adapter=labels, top_k=-1)),
            (InvalidArgumentError, lambda: client.classify([[5000]], adapter=labels)),
            (InvalidArgumentError, lambda: client.classify("a " * 5000, adapter=labels)),
            (InvalidArgumentError, lambda: client.classify([("a", "b " * 5000)], adapter=labels)),
            (InvalidArgumentError, lambda: client.embed("a", adapter=adapter, dimensions=1 << 20)),
            (InvalidArgumentError, lambda: client.embed([[]], adapter=adapter)),
            (NotFoundError, lambda: client.classify("a", adapter=nobody)),
            (NotFoundError, lambda: client.embed("a", adapter=nobody)),
            (FailedPreconditionError, lambda: client.answer("a", "b", adapter=labels)),
            (FailedPreconditionError, lambda: client.generate("a", adapter=adapter)),
        ]
        for error, ask in wrong:
            with refused(ask.__code__.co_names[-1], error):
                ask()
        self._send_junk(CLASSIFY)

    def _use(self, adapter: str) -> None:
        self._client.embed(self._choice.choice(TEXTS), adapter=adapter)

    def _classify(
        self, adapter: str | None, texts: Sequence[Any], numbers: Callable[[Any], Sequence[float]]
    ) -> None:
        assert adapter
        chosen = self._choice.choices(texts, k=self._choice.randint(1, 8))
        results = self._client.classify(chosen, adapter=adapter, logits=True).results
        for text, result in zip(chosen, results, strict=True):
            self._compare((adapter, text), numbers(result))

    def _compare(self, what: object, found: Sequence[float]) -> None:
        """Demand that `found` is what was made of the same before."""
        before = self._known.setdefault(what, found)
        assert found == pytest.approx(before, abs=TOLERANCE), f"{found} of {what}, then {before}"
        assert len(found) > 0, f"nothing of {what}"
