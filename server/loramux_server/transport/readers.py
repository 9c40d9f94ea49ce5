"""Readers of streams: a stream whose reader takes nothing for too long ends.

gRPC lets a write wait until the reader has made room for it, as long as that takes. The write is
never given up, since the status that follows would come before what it carries. But what makes the
messages ends at once, and all that it holds with it; the reader finds the status when it comes
back.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from google.protobuf.message import Message

from loramux.errors import ResourceExhaustedError


class Readers:
    """How long they may take."""

    def __init__(self, patience: float, on_lost: Callable[[], None]) -> None:
        """Set the limit.

        Args:
            patience: Seconds that a message may wait for its reader.
            on_lost: Called when a stream ends because it waited longer.
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
            messages: What is sent; it gets the error if the reader takes too long.
            write: Returns when there is room for a message on the way to the reader.
            on_lost: Called when it has ended because of that, which may be long before this
                returns.

        Raises:
            ResourceExhaustedError: The reader took too long, and has now taken what waited.
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
    """Looks at one stream now and then: a timer for each message would cost more."""

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
        """When the message that waits began to."""
        self._ending: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(patience, self._look)

    def begin(self) -> None:
        """Note that a message waits for the reader."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Note that it does not wait any more."""
        self._since = None

    async def close(self) -> None:
        """Look no more, and wait until the messages have ended if they have to."""
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
            f"the reader took nothing of the stream for {self._patience:g} s",
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
