"""One engine process, from its start to its end, and the socket to it."""

import asyncio
import contextlib
import os
import socket
import sys

from loramux_server.wire.channel import LENGTH, frame
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import FromEngine, ToEngine, decode_from_engine, encode

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    # OpenMP threads that spin while they wait for each other keep all others off the cores, even
    # the one that they wait for: with one other busy process on two cores, steps took ten times as
    # long as alone. With so short a spin it is less than twice, and alone there is no difference.
    "GOMP_SPINCOUNT": "1000",
}
"""Defaults for environment variables of the engine."""


class RunningEngine:
    """Owns the process and one end of a socket pair."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Take over a started process and the socket to it; see `spawn`."""
        self._process = process
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def spawn(config: EngineConfig) -> "RunningEngine":
        """Start an engine; its first message says whether it is ready.

        Raises:
            OSError: There can be no more processes or files at present.
        """
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        writer.write(frame(encode(config)))
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "loramux_server.engine.process",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    env=_ENVIRONMENT | os.environ,
                )
        except BaseException:
            writer.close()
            raise
        return RunningEngine(process, reader, writer)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Send it a message."""
        # If the engine has just died, its calls are about to fail anyway.
        if not self._writer.is_closing():
            self._writer.write(frame(encode(message)))

    async def read(self) -> FromEngine | None:
        """Return its next message, or None once it is gone."""
        try:
            head = await self._reader.readexactly(LENGTH.size)
            size = LENGTH.unpack(head)[0]
            message: FromEngine = decode_from_engine(await self._reader.readexactly(size))
            return message
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Close the socket, upon which a ready engine ends."""
        self._writer.close()

    def kill(self) -> None:
        """Kill it, if it has not ended yet."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        return await self._process.wait()
