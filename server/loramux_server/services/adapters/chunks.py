"""The pieces of an upload: how large they may be, and how long they may take."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from google.protobuf.message import Message

from loramux.errors import DeadlineExceededError, InvalidArgumentError

MIN_BYTES = 64 << 10
MAX_BYTES = 1 << 20

M = TypeVar("M", bound=Message)


class Chunks:
    """What all ways of uploading demand of their messages."""

    def __init__(
        self,
        idle_timeout: float,
        min_rate: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            idle_timeout: Seconds that the next message may take.
            min_rate: Bytes per second that have to come, over each `idle_timeout` of waiting; 0
                means any.
            clock: Seconds, monotonic.
        """
        self.idle_timeout = idle_timeout
        self.min_rate = min_rate
        self.clock = clock

    def of(self, requests: AsyncIterator[M]) -> "Incoming[M]":
        """Return the messages of one stream."""
        return Incoming(requests, self)

    def check_size(self, chunk: bytes, *, is_last: bool) -> None:
        """Demand that `chunk` is as large as it has to be.

        Raises:
            InvalidArgumentError: It is not.
        """
        if len(chunk) > MAX_BYTES:
            raise protocol_error(f"a chunk has {len(chunk)} bytes; at most {MAX_BYTES}", "chunk")
        if len(chunk) < MIN_BYTES and not is_last:
            raise small_chunk()


class Incoming(Generic[M]):
    """The messages of one upload, as fast as they have to come."""

    def __init__(self, requests: AsyncIterator[M], limits: Chunks) -> None:
        self._requests = requests
        self._limits = limits
        self._waited = 0.0
        """Seconds of waiting for messages since the rate was last judged."""
        self._num_bytes = 0
        """What came in that time."""

    async def next(self) -> M | None:
        """Return the next message, or None at the end.

        Raises:
            DeadlineExceededError: None came for too long, or they come too slowly.
        """
        begin, patience = self._limits.clock(), self._patience()
        try:
            async with asyncio.timeout(patience):
                message = await anext(self._requests, None)
        except TimeoutError:
            self._waited += patience
            if patience < self._limits.idle_timeout:
                raise self._too_slow() from None
            raise DeadlineExceededError(
                f"no message of the upload came for {patience:g} s", reason="DEADLINE_EXCEEDED"
            ) from None
        # Only waiting counts: what the disk takes is not the caller's fault.
        self._waited += self._limits.clock() - begin
        if message is not None:
            self._num_bytes += message.ByteSize()
            self._judge()
        return message

    def _patience(self) -> float:
        """Return the seconds after which no message could make up for the time that passed."""
        idle, rate = self._limits.idle_timeout, self._limits.min_rate
        if not rate:
            return idle
        return min(idle, max(idle, (self._num_bytes + MAX_BYTES) / rate) - self._waited)

    def _judge(self) -> None:
        if self._waited < self._limits.idle_timeout:
            return
        if self._num_bytes < self._limits.min_rate * self._waited:
            raise self._too_slow()
        self._waited, self._num_bytes = 0.0, 0

    def _too_slow(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"{self._num_bytes} bytes of the upload came in {self._waited:.1f} s; "
            f"{self._limits.min_rate} have to in each second",
            reason="UPLOAD_TOO_SLOW",
        )


def small_chunk() -> InvalidArgumentError:
    """Return the error for a chunk that may only be the last one."""
    return protocol_error(f"a chunk before the last has less than {MIN_BYTES} bytes", "chunk")


def protocol_error(message: str, field: str) -> InvalidArgumentError:
    """Return the error for messages of an upload in a wrong order or size."""
    return InvalidArgumentError(message, reason="UPLOAD_PROTOCOL", field=field)
