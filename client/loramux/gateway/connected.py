"""The connection to the servers, reopened when the client certificate's files change.

gRPC reads a client certificate once per channel.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from loramux._certificate_files import stamps
from loramux.errors import LoramuxError
from loramux.gateway.backend import Backend

LOOK_SECONDS = 1.0
"""Interval at which the files are checked."""
LINGER_SECONDS = 3600.0
"""How long calls in progress may continue over the old connection."""

_log = logging.getLogger(__name__)


class Connected:
    """Holds the current backend and replaces it when files change. For one event loop."""

    def __init__(self, open_backend: Callable[[], Backend], files: Sequence[Path]) -> None:
        self._open_backend = open_backend
        self._files = files
        self._stamps = stamps(*files)
        self._former: list[asyncio.Task[None]] = []
        self.backend = open_backend()
        """Used for new calls."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, open_backend: Callable[[], Backend], files: Sequence[Path]
    ) -> AsyncIterator[Self]:
        """Stay connected for the block; reconnect each time `files` change.

        Raises:
            LoramuxError: The connection to the servers would not be safe.
            OSError: A file cannot be read.
        """
        connected = cls(open_backend, files)
        tasks = [asyncio.create_task(connected._follow())] if files else []
        try:
            yield connected
        finally:
            tasks += connected._former
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connected.backend.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Reconnect if a file changed; if the files cannot be used, keep the current backend."""
        found = stamps(*self._files)
        if found == self._stamps:
            return
        self._stamps = found
        try:
            backend = self._open_backend()
        except (LoramuxError, OSError) as error:
            _log.warning("cannot reload the client certificate, keeping the current one: %s", error)
            return
        self._former = [task for task in self._former if not task.done()]
        self._former.append(asyncio.create_task(_closed_later(self.backend)))
        self.backend = backend


async def _closed_later(backend: Backend) -> None:
    try:
        await asyncio.sleep(LINGER_SECONDS)
    finally:
        await backend.close()
