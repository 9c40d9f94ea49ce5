"""A sandboxed process: started on first use, killed if it hangs, restarted when needed."""

import asyncio
import logging
import subprocess
from collections.abc import Mapping

from loramux.errors import UnavailableError
from loramux_server.confinement.child import (
    START_SECONDS,
    ExitCause,
    end,
    exit_cause_of,
    log_missing_layers,
    spawn,
)
from loramux_server.wire.channel import LENGTH, frame

_log = logging.getLogger(__name__)

_LOST = (OSError, asyncio.IncompleteReadError)


class LostAnswerError(Exception):
    """The process ended, or was killed, before it sent the answer that was due."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"it ended with exit code {code}" if code is not None else "it hung")
        self.code = code
        """Its exit code; None if it was killed because it hung."""

    @property
    def exit_cause(self) -> ExitCause:
        """Why it ended."""
        return exit_cause_of(self.code)


class ConfinedProcess:
    """Owns one process, `python -m MODULE FD`, and sends it one message at a time.

    The process is sent the setup and answers when it is ready. After that it answers each message.
    Callers must not call `ask` while another call is in progress.
    """

    def __init__(
        self, module: str, setup: bytes, work: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Store the settings; the process is started on first use.

        Args:
            module: The module to run.
            setup: The first message that it is sent.
            work: What it does, for messages, such as "renders chat templates".
            variables: Environment variables in addition to those that every such process gets.
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
        """Return the process's first answer; start the process if it is not running.

        Raises:
            UnavailableError: It does not start.
        """
        if self._writer is None:
            await self._start()
        return self._ready

    async def ask(self, message: bytes, seconds: float) -> bytes:
        """Return the answer to `message`; start the process if it is not running.

        Args:
            message: The message to send.
            seconds: Time limit for the answer.

        Raises:
            LostAnswerError: The process ended or timed out; it is not running any more.
            UnavailableError: It does not start.
        """
        await self.ready()
        assert self._writer is not None
        try:
            self._writer.write(frame(message))
            return await asyncio.wait_for(self._read(), seconds)
        except _LOST:
            lost = LostAnswerError(await self.end())
            if lost.exit_cause is ExitCause.SYSTEM_CALL:
                _log.error("the process that %s made a forbidden system call", self._work)
            raise lost from None
        except BaseException:
            # Otherwise the late answer would be taken for the answer to the next message.
            await self.end()
            raise

    async def end(self) -> int | None:
        """End the process; return its exit code, or None if it was killed or not running."""
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
        # In a thread: spawning forks, and on the event loop gRPC's fork handlers would run.
        starting = asyncio.create_task(asyncio.to_thread(spawn, self._module, self._variables))
        try:
            ours, self._process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            ours, self._process = await starting  # wait for it, so that it can be ended
            ours.close()
            raise
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(frame(self._setup))
        log_missing_layers(self._work, await asyncio.wait_for(self._read(), START_SECONDS))
        self._ready = await asyncio.wait_for(self._read(), START_SECONDS)

    async def _read(self) -> bytes:
        assert self._reader is not None
        head = await self._reader.readexactly(LENGTH.size)
        return await self._reader.readexactly(LENGTH.unpack(head)[0])
