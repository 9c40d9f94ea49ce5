"""The frontend's handle on a renderer process: started on first use, killed when stuck."""

import asyncio
from collections import OrderedDict

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.messages import (
    Answer,
    Failed,
    Piece,
    Refused,
    Render,
    Setup,
    decode_answer,
    encode,
)
from loramux_server.confinement.process import ConfinedProcess, LostAnswerError
from loramux_server.tasks import finished

STRIKES = 3
SUSPEND_SECONDS = 60.0
"""Seconds for which a template is suspended that had to be killed STRIKES times in a row: while it
runs, no other template is rendered."""
MAX_ENDED = 256
"""Templates whose strikes are remembered."""
ANSWER_SECONDS = 10.0
"""Wall-clock limit of an answer. The process limits its own CPU time; this is for one that gets
none."""


_Run = tuple[str, tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]
"""A template with an adapter's tokens and variables: adapters that share a template may differ."""


class TemplateLimitError(FailedPreconditionError):
    """Rendering was killed, or the template is suspended; a later attempt may succeed."""

    def __init__(self, message: str, retry_delay: float | None = None) -> None:
        super().__init__(
            f"the chat template fails: {message}",
            reason="CHAT_TEMPLATE_FAILED",
            field="messages",
            retry_delay=retry_delay,
        )


class Renderer:
    """Owns one renderer process, and gives it one conversation at a time."""

    def __init__(self, setup: Setup, *, strikes: int = STRIKES) -> None:
        """Prepare; nothing is started before the first conversation.

        Args:
            setup: The first message to the process.
            strikes: Kills in a row after which a template is suspended; 0 for never.
        """
        self._strikes = strikes
        self._ended: OrderedDict[_Run, tuple[int, float]] = OrderedDict()
        """Template -> number of kills in a row, and until when (loop time) it is suspended."""
        self._turn = asyncio.Lock()
        self._process = ConfinedProcess(
            "loramux_server.chat.worker", encode(setup), "renders chat templates"
        )

    async def render(self, request: Render) -> list[Piece]:
        """Return what the template writes.

        Raises:
            InvalidArgumentError: The template rejects the messages.
            FailedPreconditionError: The template fails, or exceeds a limit.
            UnavailableError: The process cannot be started.
        """
        async with self._turn:
            self._check_strikes(_run_of(request))
            answer = await self._ask(request)
            self._ended.pop(_run_of(request), None)
        if isinstance(answer, Refused):
            raise InvalidArgumentError(
                f"the chat template rejects the messages: {answer.message}",
                reason="CHAT_TEMPLATE_FAILED",
                field="messages",
            )
        if isinstance(answer, Failed):
            raise FailedPreconditionError(
                f"the chat template fails: {answer.message}",
                reason="CHAT_TEMPLATE_FAILED",
                field="messages",
            )
        return answer.pieces

    async def close(self) -> None:
        """End the process."""
        await self._process.end()

    async def _ask(self, request: Render) -> Answer:
        """Return the answer of the process.

        Raises:
            TemplateLimitError: It ended without one.
        """
        # A cancelled caller must not end the start: with short deadlines it would never succeed.
        await finished(self._process.ready())
        try:
            answer: Answer = decode_answer(await self._process.ask(encode(request), ANSWER_SECONDS))
        except LostAnswerError as lost:
            self._strike(_run_of(request))
            raise TemplateLimitError(f"it {lost.exit_cause.describe('a template')}") from None
        return answer

    def _check_strikes(self, run: _Run) -> None:
        count, until = self._ended.get(run, (0, 0.0))
        left = until - asyncio.get_running_loop().time()
        if self._strikes and count >= self._strikes and left > 0:
            raise TemplateLimitError(
                f"it exceeded the limits of a template {count} times in a row",
                retry_delay=left,
            )

    def _strike(self, run: _Run) -> None:
        count, _ = self._ended.pop(run, (0, 0.0))
        self._ended[run] = (count + 1, asyncio.get_running_loop().time() + SUSPEND_SECONDS)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _run_of(request: Render) -> _Run:
    own = request.own
    return request.template, own.control, own.added, tuple(sorted(own.variables.items()))
