"""A process that renders templates, seen from the frontend: started late, ended when stuck."""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections import OrderedDict

from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
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
from loramux_server.confinement import environment
from loramux_server.engine.channel import LENGTH, frame

_log = logging.getLogger(__name__)

START_SECONDS = 60.0
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
    """A template broke a limit of time or memory, which it need not do the next time."""

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
        self._setup = setup
        self._strikes = strikes
        self._ended: OrderedDict[_Run, tuple[int, float]] = OrderedDict()
        """Template -> how often in a row it had to be ended, and when it is left alone until."""
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def render(self, request: Render) -> list[Piece]:
        """Return what the template writes.

        Raises:
            InvalidArgumentError: The template does not take these messages.
            FailedPreconditionError: The template fails, or takes more than it may.
            UnavailableError: The process cannot be started.
        """
        async with self._turn:
            self._check_strikes(_run_of(request))
            if self._writer is None:
                await self._start()
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
        await self._end()

    async def _ask(self, request: Render) -> Answer:
        """Return what the process says, and end it where it does not."""
        assert self._writer is not None
        try:
            self._writer.write(frame(encode(request)))
            return await asyncio.wait_for(self._read(), ANSWER_SECONDS)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            code = await self._end()
            self._strike(_run_of(request))
            took = "memory" if code not in (-signal.SIGPROF, None) else "time"
            raise TemplateLimitError(f"it takes more {took} than a template may") from None
        except BaseException:
            # The answer to come would be taken for that to the next conversation.
            await self._end()
            raise

    def _check_strikes(self, run: _Run) -> None:
        count, until = self._ended.get(run, (0, 0.0))
        left = until - asyncio.get_running_loop().time()
        if self._strikes and count >= self._strikes and left > 0:
            raise TemplateLimitError(
                f"it took more than a template may, {count} times in a row",
                retry_delay=left,
            )

    def _strike(self, run: _Run) -> None:
        count, _ = self._ended.pop(run, (0, 0.0))
        self._ended[run] = (count + 1, asyncio.get_running_loop().time() + REST_SECONDS)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    async def _start(self) -> None:
        for is_last in (False, True):
            try:
                await self._start_once()
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                code = await self._end()
                _log.error("the process that renders chat templates ended with exit code %s", code)
                if is_last:
                    raise UnavailableError(
                        "the process that renders chat templates does not start",
                        reason="ENGINE_UNAVAILABLE",
                    ) from None
            except BaseException:
                await self._end()
                raise
            else:
                return

    async def _start_once(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "loramux_server.chat.worker", str(theirs.fileno())]
            # Not by the event loop: it forks, and in a fork handlers of gRPC would run.
            starting = asyncio.create_task(
                asyncio.to_thread(
                    subprocess.Popen,
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment(),
                )
            )
            try:
                self._process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                self._process = await starting  # to be ended, now that it is there
                raise
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(frame(encode(self._setup)))
        await asyncio.wait_for(self._read(), START_SECONDS)

    async def _end(self) -> int | None:
        """End the process; return the code with which it ended by itself, None if it did not."""
        process, writer = self._process, self._writer
        self._process = self._reader = self._writer = None
        if writer:
            writer.close()
        if process is None:
            return None
        try:
            # One that ended by itself is about to be reaped.
            return await asyncio.to_thread(process.wait, 0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
            return None

    async def _read(self) -> Answer:
        assert self._reader is not None
        head = await self._reader.readexactly(LENGTH.size)
        answer: Answer = decode_answer(await self._reader.readexactly(LENGTH.unpack(head)[0]))
        return answer


def _run_of(request: Render) -> _Run:
    own = request.own
    return request.template, own.control, own.added, tuple(sorted(own.variables.items()))
