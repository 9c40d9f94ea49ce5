"""Classification of a request's texts by an adapter, shared by several routes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from loramux import _classification_wire
from loramux.errors import FailedPreconditionError
from loramux.gateway.answers import adapter_header
from loramux.gateway.backend import Backend
from loramux.gateway.body import Priority
from loramux.gateway.caller import Caller
from loramux.gateway.grpc_requests import adapter_of, check_timeout
from loramux.gateway.text_batches import Named, Text, call_in_batches
from loramux.v1 import classification_pb2


class ClassificationBody(msgspec.Struct, kw_only=True):
    """The fields that these requests share."""

    model: str
    user: str = ""

    # vLLM's.
    use_activation: bool = True
    """Whether to return scores instead of logits."""
    priority: Priority = 0

    # loramux's own.
    add_special_tokens: bool = True
    parse_special_tokens: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class ClassificationResult:
    """The results of all texts."""

    names: Sequence[str]
    """The label names, in order of label index."""
    results: Sequence[classification_pb2.Classification]
    """One for each text, with its logits."""
    num_tokens: int
    headers: dict[str, str]

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, as OpenAI's `usage`."""
        return {"prompt_tokens": self.num_tokens, "total_tokens": self.num_tokens}


@dataclass(frozen=True, slots=True)
class Classification:
    """A validated request that classifies texts."""

    body: ClassificationBody
    adapter: str
    backend: Backend
    caller: Caller

    @staticmethod
    def of(
        body: ClassificationBody, backend: Backend, caller: Caller, base: str
    ) -> "Classification":
        """Return `body` as a request to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        check_timeout(body.timeout)
        adapter = adapter_of(body.model, base)
        if adapter is None:
            raise FailedPreconditionError(
                f"model is {base!r}, the base model, which has no labels; name an adapter that "
                "classifies texts (task SEQ_CLS)",
                reason="ADAPTER_TASK_MISMATCH",
                field="model",
            )
        return Classification(body, adapter, backend, caller)

    async def of_texts(
        self, inputs: Sequence[Text], named: Named, *, one: str = ""
    ) -> ClassificationResult:
        """Return the classification of `inputs`.

        Args:
            inputs: The texts.
            named: Names a text in errors.
            one: Name of the output if the adapter must have exactly one; otherwise empty.

        Raises:
            LoramuxError: The server refuses them, or the adapter has other labels.
        """
        names: Sequence[str] = ()
        results: list[classification_pb2.Classification] = []
        num_tokens, headers = 0, dict(self.caller.returned)
        calls = call_in_batches(inputs, self.adapter, self.body.timeout, self._ask, named)
        async for _, response in calls:
            names = response.labels
            if any(result.tokens for result in response.results):
                raise self._mismatch(
                    "classifies tokens (task TOKEN_CLS)", "one that classifies texts"
                )
            if one and len(names) != 1:
                what = f"has {len(names)} labels"
                raise self._mismatch(what, f"one with a single output, the {one}")
            results += response.results
            num_tokens += response.usage.prompt_tokens
            headers["x-loramux-adapter"] = adapter_header([response.adapter])
        return ClassificationResult(names, results, num_tokens, headers)

    def head(self, kind: str) -> dict[str, object]:
        """Return the first fields of an answer of a `kind`."""
        return {
            "id": f"{kind}-{self.caller.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": self.body.model,
        }

    async def _ask(
        self, texts: Sequence[Text], adapter: str | None, seconds: float | None
    ) -> classification_pb2.ClassifyResponse:
        body = self.body
        request = _classification_wire.classify_request(
            texts,
            adapter or "",
            None,
            True,
            "",
            body.user or self.caller.request_id,
            body.priority,
            body.parse_special_tokens,
            body.add_special_tokens,
        )
        return await self.backend.classify(request, self.caller, seconds)

    def _mismatch(self, does: str, needed: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"model is {self.body.model!r}, which {does}; name {needed}",
            reason="ADAPTER_TASK_MISMATCH",
            field="model",
        )
