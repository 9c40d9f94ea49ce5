"""`/v1/embeddings`: from OpenAI's body to what the server is asked, and back."""

import asyncio
import base64
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
from starlette.types import Receive, Scope, Send

from loramux import _embedding_wire
from loramux.errors import LoramuxError
from loramux.gateway.answers import adapter_header
from loramux.gateway.asked import adapter_of, check_timeout
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.gateway.refusal import invalid, json_response
from loramux.v1 import embedding_pb2

MAX_INPUTS = 2048
"""As OpenAI has it."""
AT_ONCE = 64
"""Texts of one call of the server."""
BYTES_AT_ONCE = 256 << 10
"""Bytes of their text."""
MIN_SECONDS = 0.001
"""What a call is left where nothing is: it ends as one whose time is over."""
Text: TypeAlias = str | list[int]


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """What a request may say."""

    model: str
    input: object
    """Text, a list of texts, a list of token ids, or a list of such lists."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str = ""

    # Our own.
    pooling: str | None = None
    normalize: bool | None = None
    add_special_tokens: bool = True
    parse_special_tokens: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """What it takes to answer a request."""

    body: EmbeddingBody
    inputs: Sequence[Text]
    adapter: str | None
    """None for the base model."""
    backend: Backend
    caller: Caller

    @staticmethod
    def of(body: EmbeddingBody, backend: Backend, caller: Caller, base: str) -> "Embedding":
        """Return what answers `body`, of a server whose base model is called `base`.

        Raises:
            LoramuxError: It cannot be asked; the error names the field.
        """
        check_timeout(body.timeout)
        return Embedding(body, _inputs(body.input), adapter_of(body.model, base), backend, caller)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        now, seconds = asyncio.get_running_loop().time, self.body.timeout
        end = None if seconds is None else now() + seconds
        data: list[bytes] = []
        num_tokens, adapter, headers = 0, self.adapter, dict(self.caller.returned)
        # One call after the other: many at once would take the place of others.
        for start, texts in batches(self.inputs):
            left = None if end is None else max(end - now(), MIN_SECONDS)
            try:
                response = await self.backend.embed(
                    self._request(texts, adapter), self.caller, left
                )
            except LoramuxError as error:
                raise _theirs(error, start, is_list=self.body.input is self.inputs) from None
            num_tokens += response.usage.prompt_tokens
            if response.HasField("adapter"):
                # The other texts are embedded by the same, whatever the name comes to stand for.
                adapter = headers["x-loramux-adapter"] = adapter_header([response.adapter])
            # As numbers of Python all vectors together would take several times the memory.
            data.append(await asyncio.to_thread(self._encoded, response.embeddings, start))
        answer = {
            "object": "list",
            "data": msgspec.Raw(await asyncio.to_thread(_joined, data)),
            "model": self.body.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        await json_response(answer, headers)(scope, receive, send)

    def _request(self, texts: Sequence[Text], adapter: str | None) -> embedding_pb2.EmbedRequest:
        body = self.body
        return _embedding_wire.embed_request(
            texts,
            adapter,
            body.pooling,
            body.normalize,
            body.dimensions,
            "",
            body.user or self.caller.request_id,
            body.parse_special_tokens,
            body.add_special_tokens,
        )

    def _encoded(self, embeddings: Sequence[embedding_pb2.Embedding], start: int) -> bytes:
        """Return `embeddings`, the first of them at place `start`, as JSON with commas between."""
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


def batches(inputs: Sequence[Text]) -> Iterator[tuple[int, Sequence[Text]]]:
    """Yield what fits one call each, and the place of the first of them in `inputs`."""
    start = size = 0
    for place, text in enumerate(inputs):
        own = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
        if place - start == AT_ONCE or (place > start and size + own > BYTES_AT_ONCE):
            yield start, inputs[start:place]
            start, size = place, 0
        size += own
    yield start, inputs[start:]


def _inputs(given: object) -> Sequence[Text]:
    if isinstance(given, str) and given:
        return [given]
    if isinstance(given, list) and given:
        if all(type(each) is int for each in given):
            return [given]
        if len(given) > MAX_INPUTS:
            raise invalid("input", f"input has {len(given)} entries; at most {MAX_INPUTS}")
        if all(each and _is_text(each) for each in given):
            return given
    raise invalid(
        "input", "input has to be text, token ids, or a list of either, and none may be empty"
    )


def _is_text(each: object) -> bool:
    return isinstance(each, str) or (
        isinstance(each, list) and all(type(token) is int for token in each)
    )


def _theirs(error: LoramuxError, start: int, *, is_list: bool) -> LoramuxError:
    """Return `error` with the name of its text here; those of its call begin at `start`."""
    found = re.match(r"inputs(\[(\d+)\](\.\w+)?)?$", error.field)
    if not found:
        return error
    field = f"input[{start + int(found[2])}]" if found[2] and is_list else "input"
    message = str(error)
    if message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    return type(error)(message, reason=error.reason, field=field, retry_delay=error.retry_delay)
