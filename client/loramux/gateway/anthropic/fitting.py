"""Answers that are no longer than the context lets them be.

Agents ask for as many tokens as the largest models have, whatever the prompt leaves room for. As
with Anthropic's models, an answer that is cut off by that says so.
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
    """What it takes to answer with as many tokens as there is room for, where more are asked."""

    backend: Backend
    caller: Caller
    asked: generation_pb2.GenerateRequest
    """May be made to ask for fewer."""
    answer: Answer
    """How it looks."""
    seconds: float | None
    """How long each call of the server may take."""

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        await self._answer(self._answering.whole, scope, receive, send)

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with events."""
        await self._answer(self._answering.events, scope, receive, send)

    @property
    def _answering(self) -> Answering:
        return Answering(self.backend, self.caller, [self.asked], self.answer, self.seconds)

    async def _answer(self, answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        context = (await self.backend.info(self.caller)).context_length
        if self.asked.sampling.max_tokens > context:  # is refused whatever the prompt
            self._shorten(context)
        try:
            await answer(scope, receive, send)
        except InvalidArgumentError as error:  # before anything was sent
            if (error.reason, error.field) != ("CONTEXT_LENGTH_EXCEEDED", "sampling.max_tokens"):
                raise
            counting = Counting.of(self.backend, self.caller, self.asked, self.seconds)
            self._shorten(context - await counting.taken())
            await answer(scope, receive, send)

    def _shorten(self, num_tokens: int) -> None:
        self.asked.sampling.max_tokens = num_tokens
        self.answer.is_all_that_fits = True
