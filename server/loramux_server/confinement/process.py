"""A process that works on what strangers wrote: started late, ended when stuck, started again."""

import asyncio
import logging
import subprocess
from collections.abc import Mapping

from loramux.errors import UnavailableError
from loramux_server.confinement.child import (
    START_SECONDS,
    Offence,
    end,
    offence_of,
    spawn,
    tell_missing,
)
from loramux_server.wire.channel import LENGTH, frame

_log = logging.getLogger(__name__)

_LOST = (OSError, asyncio.IncompleteReadError)


class LostAnswerError(Exception):
    """The process ended, or had to be ended, and the answer that was due does not come."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"it ended with exit code {code}" if code is not None else "it hung")
        self.code = code
        """With which it ended by itself; None if it did not."""

    @property
    def offence(self) -> Offence:
        """Why."""
        return offence_of(self.code)


class ConfinedProcess:
    """Owns one process, `python -m MODULE FD`, and asks it one thing at a time.

    It is sent the setup, and answers when it is ready; from then on it answers each message. To ask
    while another waits for an answer is the caller's mistake.
    """

    def __init__(
        self, module: str, setup: bytes, work: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            module: What it runs.
            setup: What it is sent first.
            work: What it does, for messages, such as "renders chat templates".
            variables: What its environment has beside what every such process has.
        """
        self._module = module
        self._setup = setup
        self._work = work
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready = b""

    async def ready(self) -> bytes:
        """Return what it said when it was ready, and start it first where there is none.

        Raises:
            UnavailableError: It does not start.
        """
        if self._writer is None:
            await self._start()
        return self._ready

    async def ask(self, message: bytes, seconds: float) -> bytes:
        """Return the answer to `message`; the process is started first where there is none.

        Args:
            message: What it is sent.
            seconds: How long the answer may take.

        Raises:
            LostAnswerError: There is none; the process has been ended.
            UnavailableError: It does not start.
        """
        await self.ready()
        assert self._writer is not None
        try:
            self._writer.write(frame(message))
            return await asyncio.wait_for(self._read(), seconds)
        except _LOST:
            lost = LostAnswerError(await self.end())
            if lost.offence is Offence.SYSTEM_CALL:
                _log.error("the process that %s made a forbidden system call", self._work)
            raise lost from None
        except BaseException:
            # The answer to come would be taken for that to the next message.
            await self.end()
            raise

    async def end(self) -> int | None:
        """End it; return the code with which it ended by itself, None if it did not."""
        process, writer = self._process, self._writer
        self._process = self._reader = self._writer = None
        if writer:
            writer.close()
        return None if process is None else await asyncio.to_thread(end, process)

    async def _start(self) -> None:
        for is_last in (False, True):
            try:
                await self._start_once()
            except _LOST:
                code = await self.end()
                _log.error("the process that %s ended with exit code %s", self._work, code)
                if is_last:
                    raise UnavailableError(
                        f"the process that {self._work} does not start", reason="ENGINE_UNAVAILABLE"
                    ) from None
            except BaseException:
                await self.end()
                raise
            else:
                return

    async def _start_once(self) -> None:
        # Not by the event loop: it forks, and in a fork handlers of gRPC would run.
        starting = asyncio.create_task(asyncio.to_thread(spawn, self._module, self._variables))
        try:
            ours, self._process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            ours, self._process = await starting  # to be ended, now that it is there
            ours.close()
            raise
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(frame(self._setup))
        tell_missing(self._work, await asyncio.wait_for(self._read(), START_SECONDS))
        self._ready = await asyncio.wait_for(self._read(), START_SECONDS)

    async def _read(self) -> bytes:
        assert self._reader is not None
        head = await self._reader.readexactly(LENGTH.size)
        return await self._reader.readexactly(LENGTH.unpack(head)[0])
