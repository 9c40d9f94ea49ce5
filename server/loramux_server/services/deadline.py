"""The deadline of a request."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from loramux.errors import DeadlineExceededError
from loramux_server.engine_link.mailbox import Mailbox
from loramux_server.transport.rpc import Context

MAX_TIMEOUT = 3600.0
"""Maximum seconds for a request, whatever its deadline."""


class Deadline:
    """The moment by which a request must have finished.

    Only the waits for a prompt and for the engine are cut short. Between the chunks of a stream the
    task belongs to gRPC, and a stream whose task is cancelled there never ends for its reader.
    """

    @staticmethod
    def of(context: Context, default: float) -> "Deadline":
        """Return the deadline of a call, `default` seconds from now if it has none."""
        remaining = context.time_remaining()
        return Deadline(default if remaining is None else min(remaining, MAX_TIMEOUT))

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._when = asyncio.get_running_loop().time() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._when - asyncio.get_running_loop().time())

    @contextmanager
    def over(self, mailbox: Mailbox[Any]) -> Iterator[None]:
        """Fail `mailbox` with DeadlineExceededError at the deadline, unless the block has ended."""
        timer = asyncio.get_running_loop().call_at(self._when, mailbox.fail, self._error())
        try:
            yield
        finally:
            timer.cancel()

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """Cancel the block at the deadline; it must not yield chunks to callers.

        Raises:
            DeadlineExceededError: The deadline passed.
        """
        try:
            async with asyncio.timeout_at(self._when):
                yield
        except TimeoutError:
            raise self._error() from None

    def _error(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the request did not finish within {self._seconds:.3g} s", reason="DEADLINE_EXCEEDED"
        )
