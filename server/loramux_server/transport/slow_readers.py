"""Ends streams whose readers are too slow.

With gRPC a write waits until flow control has room, however long that takes. The write is never
cancelled, since the final status would overtake its message. But the generator of the messages ends
at once and releases its resources; the reader gets the status if it ever resumes.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from google.protobuf.message import Message

from loramux.errors import ResourceExhaustedError


class SlowReaderGuard:
    """The time limit for readers."""

    def __init__(self, patience: float, on_lost: Callable[[], None]) -> None:
        """Set the limit.

        Args:
            patience: Seconds that a write may wait for the reader.
            on_lost: Called when a stream ends because a write waited longer.
        """
        self._patience = patience
        self._on_lost = on_lost

    async def send(
        self,
        messages: AsyncGenerator[Message, None],
        write: Callable[[Message], Awaitable[None]],
        on_lost: Callable[[], None],
    ) -> None:
        """Write `messages` until they end.

        Args:
            messages: The messages; the error is thrown into it if the reader is too slow.
            write: Returns when flow control has room for the message.
            on_lost: Called when `messages` has ended because of that, which may be long before
                this returns.

        Raises:
            ResourceExhaustedError: The reader was too slow, and has now read the pending message.
        """
        async with aclosing(messages):
            watch = _Watch(self._patience, messages, self._on_lost, on_lost)
            try:
                async for message in messages:
                    watch.begin()
                    await write(message)
                    watch.end()
                    if watch.error:
                        raise watch.error
            finally:
                await watch.close()


class _Watch:
    """Checks one stream periodically, which is cheaper than a timer per message."""

    def __init__(
        self,
        patience: float,
        messages: AsyncGenerator[Message, None],
        *on_lost: Callable[[], None],
    ) -> None:
        self.error: ResourceExhaustedError | None = None
        """Why the stream has to end."""
        self._patience = patience
        self._messages = messages
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        """When the pending write began; None if there is none."""
        self._ending: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(patience, self._look)

    def begin(self) -> None:
        """Record that a write has begun."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Record that the write has ended."""
        self._since = None

    async def close(self) -> None:
        """Stop checking; if the messages are being ended, wait for it."""
        self._timer.cancel()
        if self._ending:
            await self._ending

    def _look(self) -> None:
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._patience
        if now < due:
            self._timer = self._loop.call_at(due, self._look)
            return
        self.error = ResourceExhaustedError(
            f"the client read nothing from the stream for {self._patience:g} s",
            reason="READER_TOO_SLOW",
        )
        self._ending = self._loop.create_task(self._end(self.error))

    async def _end(self, error: ResourceExhaustedError) -> None:
        try:
            with suppress(ResourceExhaustedError, StopAsyncIteration):
                await self._messages.athrow(error)
        finally:
            for call in self._on_lost:
                call()
