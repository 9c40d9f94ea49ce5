"""A process that renders templates, seen from the frontend: started late, ended when stuck."""

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

STRIKES = 3
REST_SECONDS = 60.0
"""A template that had to be ended so often in a row is left alone for so long, because meanwhile
nobody else's is rendered."""
MAX_ENDED = 256
"""Templates of which that is remembered."""
ANSWER_SECONDS = 10.0
"""The process counts the time in which it runs; this is for one that does not get to run."""


_Run = tuple[str, tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]
"""A template and what an adapter has for it, which others that share the template have not."""


class TemplateLimitError(FailedPreconditionError):
    """A template ended the process that renders, which it need not do the next time."""

    def __init__(self, message: str, retry_delay: float | None = None) -> None:
        super().__init__(
            f"the chat template fails: {message}",
            reason="CHAT_TEMPLATE_FAILED",
            field="messages",
            retry_delay=retry_delay,
        )


class Renderer:
    """Owns one process that renders, and gives it one conversation at a time."""

    def __init__(self, setup: Setup, *, strikes: int = STRIKES) -> None:
        """Prepare; nothing is started before the first conversation.

        Args:
            setup: What the process needs to know.
            strikes: How often in a row a template may have to be ended; 0 for any number.
        """
        self._strikes = strikes
        self._ended: OrderedDict[_Run, tuple[int, float]] = OrderedDict()
        """Template -> how often in a row it had to be ended, and when it is left alone until."""
        self._turn = asyncio.Lock()
        self._process = ConfinedProcess(
            "loramux_server.chat.worker", encode(setup), "renders chat templates"
        )

    async def render(self, request: Render) -> list[Piece]:
        """Return what the template writes.

        Raises:
            InvalidArgumentError: The template does not take these messages.
            FailedPreconditionError: The template fails, or takes more than it may.
            UnavailableError: The process cannot be started.
        """
        async with self._turn:
            self._check_strikes(_run_of(request))
            answer = await self._ask(request)
            self._ended.pop(_run_of(request), None)
        if isinstance(answer, Refused):
            raise InvalidArgumentError(
                f"the chat template does not take these messages: {answer.message}",
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
        """Return what the process says."""
        try:
            answer: Answer = decode_answer(await self._process.ask(encode(request), ANSWER_SECONDS))
        except LostAnswerError as lost:
            self._strike(_run_of(request))
            raise TemplateLimitError(f"it {lost.offence.by('a template')}") from None
        return answer

    def _check_strikes(self, run: _Run) -> None:
        count, until = self._ended.get(run, (0, 0.0))
        left = until - asyncio.get_running_loop().time()
        if self._strikes and count >= self._strikes and left > 0:
            raise TemplateLimitError(
                f"it did more than a template may, {count} times in a row",
                retry_delay=left,
            )

    def _strike(self, run: _Run) -> None:
        count, _ = self._ended.pop(run, (0, 0.0))
        self._ended[run] = (count + 1, asyncio.get_running_loop().time() + REST_SECONDS)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _run_of(request: Render) -> _Run:
    own = request.own
    return request.template, own.control, own.added, tuple(sorted(own.variables.items()))
