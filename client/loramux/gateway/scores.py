"""`/score` and `/rerank`: how well two texts match, by an adapter with a single output.

A score is the sigmoid of that output, as in vLLM and sentence-transformers' `CrossEncoder`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope, Send

from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.classification import Classification, ClassificationBody, ClassificationResult
from loramux.gateway.refusal import invalid, json_response
from loramux.gateway.text_batches import Named, check_count


class ScoreBody(ClassificationBody, kw_only=True):
    """The body of `/score`: equally many of both texts, or a single `text_1`."""

    text_1: str | list[str]
    text_2: str | list[str]


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A document as an object; other APIs give it more fields."""

    text: str


class RerankBody(ClassificationBody, kw_only=True):
    """The body of `/rerank`."""

    query: str
    documents: list[str | Document]
    top_n: int = 0
    """How many documents to return, by score; 0 for all."""
    return_documents: bool = True


@dataclass(frozen=True, slots=True)
class Scoring:
    """A validated `/score` request, ready to be answered."""

    body: ScoreBody
    pairs: Sequence[tuple[str, str]]
    classification: Classification

    @staticmethod
    def of(body: ScoreBody, backend: Backend, caller: Caller, base: str) -> "Scoring":
        """Return `body` as a request to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
        second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
        for name, texts in (("text_1", first), ("text_2", second)):
            _check_list(name, texts)
        if len(first) not in (1, len(second)):
            raise invalid(
                "text_2",
                f"text_2 has {len(second)} entries and text_1 has {len(first)}; expected equally "
                "many, or one in text_1",
            )
        pairs = list(zip(first * (len(second) // len(first)), second, strict=True))
        return Scoring(body, pairs, Classification.of(body, backend, caller, base))

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        found, scores = await _scored(self.classification, self.pairs, self._named)
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(scores)
        ]
        answer = {**self.classification.head("score"), "data": data, "usage": found.usage}
        await json_response(answer, found.headers)(scope, receive, send)

    def _named(self, place: int | None, part: str) -> str:
        name = "text_1" if part == "text" else "text_2"
        texts = getattr(self.body, name)
        if place is None or isinstance(texts, str):
            return name
        return f"{name}[{min(place, len(texts) - 1)}]"


@dataclass(frozen=True, slots=True)
class Reranking:
    """A validated `/rerank` request, ready to be answered."""

    body: RerankBody
    documents: Sequence[str]
    classification: Classification

    @staticmethod
    def of(body: RerankBody, backend: Backend, caller: Caller, base: str) -> "Reranking":
        """Return `body` as a request to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        _check_list("documents", body.documents)
        if body.top_n < 0:
            raise invalid("top_n", f"top_n is {body.top_n}; expected 1 or more, or 0 for all")
        documents = [each if isinstance(each, str) else each.text for each in body.documents]
        return Reranking(body, documents, Classification.of(body, backend, caller, base))

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        pairs = [(self.body.query, document) for document in self.documents]
        found, scores = await _scored(self.classification, pairs, self._named)
        # By logits, which still differ where their sigmoids round to the same score.
        order = sorted(range(len(pairs)), key=lambda index: -found.results[index].logits[0])
        results = []
        for index in order[: self.body.top_n or None]:
            result: dict[str, object] = {"index": index, "relevance_score": scores[index]}
            if self.body.return_documents:
                result["document"] = {"text": self.documents[index]}
            results.append(result)
        head = self.classification.head("rerank")
        answer = {
            "id": head["id"], "model": head["model"], "results": results, "usage": found.usage,
        }  # fmt: skip
        await json_response(answer, found.headers)(scope, receive, send)

    def _named(self, place: int | None, part: str) -> str:
        if part == "text":
            return "query"
        return "documents" if place is None else f"documents[{place}]"


async def _scored(
    classification: Classification, pairs: Sequence[tuple[str, str]], named: Named
) -> tuple[ClassificationResult, list[float]]:
    """Return the results for `pairs`, and the score of each.

    Raises:
        LoramuxError: The server refuses them, or the adapter does not have exactly one output.
    """
    found = await classification.of_texts(pairs, named, one="score")
    logits = [result.logits[0] for result in found.results]
    if not classification.body.use_activation:
        return found, logits
    return found, [0.5 + 0.5 * math.tanh(logit / 2) for logit in logits]


def _check_list(name: str, texts: Sequence[object]) -> None:
    if not texts:
        raise invalid(name, f"{name} is empty; expected a text or a list of texts")
    check_count(name, len(texts))
