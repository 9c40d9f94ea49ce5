"""Answers `/v1/responses`, with one object or a stream of events."""

import itertools
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from loramux.errors import LoramuxError
from loramux.gateway.answering import Streaming, headers_by
from loramux.gateway.events import event
from loramux.gateway.refusal import error_object, json_response
from loramux.gateway.responses.names import ResponsesNames
from loramux.gateway.responses.output import Event
from loramux.gateway.responses.response import Response
from loramux.gateway.styles import Object
from loramux.v1 import generation_pb2

_CODES = {"rate_limit_error": "rate_limit_exceeded", "server_error": "server_error"}
"""Error type -> code of a failed response; `invalid_prompt` for all others."""


@dataclass(frozen=True, slots=True)
class ResponseEvents:
    """The events of a response; see `loramux.gateway.answering.StreamFormatter`."""

    response: Response
    names: ResponsesNames
    """Field names for errors."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def is_long(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bool:
        """See `StreamFormatter`."""
        return False

    def events(self, place: int, response: generation_pb2.StreamGenerateResponse) -> bytes:
        """See `StreamFormatter`."""
        return self._encoded(*self.add(response))

    def add(self, chunk: generation_pb2.StreamGenerateResponse) -> list[Event]:
        """Add `chunk`; return its events."""
        found: list[Event] = []
        if chunk.HasField("sampling"):
            self.response.begin(chunk.sampling)
            begun: Object = {"response": self.response.object("in_progress", [])}
            found += [("response.created", begun), ("response.in_progress", begun)]
        if chunk.HasField("usage"):
            self.response.usage = chunk.usage
        return found + list(self.response.output.take(chunk.delta))

    def end(self, usages: Sequence[generation_pb2.Usage]) -> bytes:
        """See `StreamFormatter`."""
        ended = self.response.ended()
        return self._encoded((f"response.{ended['status']}", {"response": ended}))

    def failure(self, error: LoramuxError) -> bytes:
        """See `StreamFormatter`."""
        found = error_object(error, self.names)
        why: Object = {
            "code": _CODES.get(found["type"] or "", "invalid_prompt"), "message": found["message"],
        }  # fmt: skip
        failed = self.response.object("failed", self.response.output.all(), why)
        fields: Object = {name: found[name] for name in ("code", "message", "param")}
        return self._encoded(("error", fields), ("response.failed", {"response": failed}))

    def _encoded(self, *events: Event) -> bytes:
        return b"".join(
            event({"type": kind, "sequence_number": next(self._numbers)} | fields, kind)
            for kind, fields in events
        )


@dataclass(frozen=True, slots=True)
class Responding(Streaming):
    """A validated request, ready to be answered."""

    answers: ResponseEvents

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object.

        The server's answer is read as a stream here, too: only chunks show the order of text and
        calls, and which tokens are text.
        """
        adapters: Sequence[generation_pb2.AdapterIdentity] = ()
        async with aclosing(self.chunks()) as chunks:
            async for _, chunk in chunks:
                adapters = adapters or chunk.adapters
                self.answers.add(chunk)
        headers = headers_by(self.caller, adapters)
        await json_response(self.answers.response.ended(), headers)(scope, receive, send)
