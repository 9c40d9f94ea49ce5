"""A process that renders templates, seen from the frontend: started late, ended when stuck."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from loramux.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
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
from loramux_server.engine.channel import LENGTH, frame

START_SECONDS = 60.0
ANSWER_SECONDS = 10.0
"""The process counts the time in which it runs; this is for one that does not get to run."""


class Renderer:
    """Owns one process that renders, and gives it one conversation at a time."""

    def __init__(self, setup: Setup) -> None:
        """Prepare; nothing is started before the first conversation."""
        self._setup = setup
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
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
            if self._writer is None:
                await self._start()
            assert self._writer is not None
            try:
                self._writer.write(frame(encode(request)))
                answer = await asyncio.wait_for(self._read(), ANSWER_SECONDS)
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                code = await self._end()
                took = "memory" if code not in (-signal.SIGPROF, None) else "time"
                raise _failed(f"it takes more {took} than a template may") from None
            except BaseException:
                # The answer to come would be taken for that to the next conversation.
                await self._end()
                raise
        if isinstance(answer, Refused):
            raise InvalidArgumentError(
                f"the chat template does not take these messages: {answer.message}",
                reason="CHAT_TEMPLATE_FAILED",
                field="messages",
            )
        if isinstance(answer, Failed):
            raise _failed(answer.message)
        return answer.pieces

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "loramux_server.chat.worker", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, env=_environment(),
            )  # fmt: skip
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            self._writer.write(frame(encode(self._setup)))
            await asyncio.wait_for(self._read(), START_SECONDS)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            await self._end()
            raise UnavailableError(
                "the process that renders chat templates does not start",
                reason="ENGINE_UNAVAILABLE",
            ) from None
        except BaseException:
            await self._end()
            raise

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
            return await asyncio.wait_for(process.wait(), 0.2)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return None

    async def _read(self) -> Answer:
        assert self._reader is not None
        head = await self._reader.readexactly(LENGTH.size)
        answer: Answer = decode_answer(await self._reader.readexactly(LENGTH.unpack(head)[0]))
        return answer


def _environment() -> dict[str, str]:
    """Return what the process may know of the environment."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _failed(message: str) -> LoramuxError:
    return FailedPreconditionError(
        f"the chat template fails: {message}", reason="CHAT_TEMPLATE_FAILED", field="messages"
    )
