"""`/v1/embeddings`: OpenAI's request body to the server's request, and its response back."""

import asyncio
import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import msgspec
from starlette.types import Receive, Scope, Send

from loramux import _embedding_wire
from loramux.gateway.answers import adapter_header
from loramux.gateway.backend import Backend
from loramux.gateway.body import Priority
from loramux.gateway.caller import Caller
from loramux.gateway.grpc_requests import adapter_of, check_timeout
from loramux.gateway.refusal import invalid, json_response
from loramux.gateway.text_batches import Text, call_in_batches, check_count, is_ids, name_in_input
from loramux.v1 import embedding_pb2


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of a request."""

    model: str
    input: object
    """Text, token ids, or a list of either."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str = ""

    # vLLM's.
    priority: Priority = 0

    # loramux's own.
    pooling: str | None = None
    normalize: bool | None = None
    add_special_tokens: bool = True
    parse_special_tokens: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """A validated request, ready to be answered."""

    body: EmbeddingBody
    inputs: Sequence[Text]
    adapter: str | None
    """None for the base model."""
    backend: Backend
    caller: Caller

    @staticmethod
    def of(body: EmbeddingBody, backend: Backend, caller: Caller, base: str) -> "Embedding":
        """Return `body` as a request to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        check_timeout(body.timeout)
        return Embedding(body, _inputs(body.input), adapter_of(body.model, base), backend, caller)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        data: list[bytes] = []
        num_tokens, headers = 0, dict(self.caller.returned)
        calls = call_in_batches(
            self.inputs, self.adapter, self.body.timeout, self._ask, self._named
        )
        async for start, response in calls:
            num_tokens += response.usage.prompt_tokens
            if response.HasField("adapter"):
                headers["x-loramux-adapter"] = adapter_header([response.adapter])
            # Encoded per call: as Python floats, all vectors would take several times the memory.
            data.append(await asyncio.to_thread(self._encoded, response.embeddings, start))
        answer = {
            "object": "list",
            "data": msgspec.Raw(await asyncio.to_thread(_joined, data)),
            "model": self.body.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        await json_response(answer, headers)(scope, receive, send)

    def _named(self, place: int | None, part: str) -> str:
        return name_in_input(place, is_one=self.body.input is not self.inputs)

    async def _ask(
        self, texts: Sequence[Text], adapter: str | None, seconds: float | None
    ) -> embedding_pb2.EmbedResponse:
        body = self.body
        request = _embedding_wire.embed_request(
            cast(Sequence[str | list[int]], texts),
            adapter,
            body.pooling,
            body.normalize,
            body.dimensions,
            "",
            body.user or self.caller.request_id,
            body.priority,
            body.parse_special_tokens,
            body.add_special_tokens,
        )
        return await self.backend.embed(request, self.caller, seconds)

    def _encoded(self, embeddings: Sequence[embedding_pb2.Embedding], start: int) -> bytes:
        """Return `embeddings`, whose first has index `start`, as comma-separated JSON objects."""
        return b",".join(
            msgspec.json.encode({
                "object": "embedding", "index": start + index, "embedding": self._vector(each),
            })
            for index, each in enumerate(embeddings)
        )  # fmt: skip

    def _vector(self, embedding: embedding_pb2.Embedding) -> object:
        if self.body.encoding_format == "float":
            return list(embedding.values)
        raw = struct.pack(f"<{len(embedding.values)}f", *embedding.values)
        return base64.b64encode(raw).decode()


def _joined(data: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(data) + b"]"


def _inputs(given: object) -> Sequence[Text]:
    if isinstance(given, str) and given:
        return [given]
    if isinstance(given, list) and given:
        if is_ids(given):
            return [given]
        check_count("input", len(given))
        if all(each and (isinstance(each, str) or is_ids(each)) for each in given):
            return given
    raise invalid(
        "input", "input must be text, token ids, or a list of either; none of them may be empty"
    )
