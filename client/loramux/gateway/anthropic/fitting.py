"""Lowers `max_tokens` to what fits in the context.

Agents send a fixed, large `max_tokens`, whatever room the prompt leaves. As with Anthropic's
models, the answer then ends when the context is full, and its `stop_reason` says so.
"""

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from loramux.errors import InvalidArgumentError
from loramux.gateway.answering import Answering
from loramux.gateway.anthropic.answer import Answer
from loramux.gateway.anthropic.counting import Counting
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller
from loramux.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Fitting:
    """A request whose `max_tokens` may not fit in the context."""

    backend: Backend
    caller: Caller
    request: generation_pb2.GenerateRequest
    """Its `max_tokens` may be lowered."""
    answer: Answer
    """Converts the response."""
    seconds: float | None
    """Timeout of each call of the server; None for the default."""

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        await self._answer(self._answering.whole, scope, receive, send)

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with events."""
        await self._answer(self._answering.events, scope, receive, send)

    @property
    def _answering(self) -> Answering:
        return Answering(self.backend, self.caller, [self.request], self.answer, self.seconds)

    async def _answer(self, answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        server = await self.backend.info(self.caller)
        fills_context = self.request.sampling.max_tokens >= server.context_length
        if fills_context and server.kind != "seq2seq":  # would be refused with any prompt
            await self._shorten()
            await answer(scope, receive, send)
            return
        try:
            await answer(scope, receive, send)
        except InvalidArgumentError as error:  # before anything was sent
            if (error.reason, error.field) != ("CONTEXT_LENGTH_EXCEEDED", "sampling.max_tokens"):
                raise
            await self._shorten()
            await answer(scope, receive, send)

    async def _shorten(self) -> None:
        counting = Counting(self.backend, self.caller, self.request, self.seconds)
        self.request.sampling.max_tokens = await counting.room()
        self.answer.is_shortened = True
