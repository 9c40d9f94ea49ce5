"""Limits on the chunks of an upload: size, pauses and rate."""

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
    """Limits shared by all ways of uploading."""

    def __init__(
        self,
        idle_timeout: float,
        min_rate: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            idle_timeout: Maximum seconds between messages.
            min_rate: Minimum bytes per second, over each `idle_timeout` of waiting; 0 for no
                minimum.
            clock: Monotonic seconds.
        """
        self.idle_timeout = idle_timeout
        self.min_rate = min_rate
        self.clock = clock

    def of(self, requests: AsyncIterator[M]) -> "Incoming[M]":
        """Return the messages of one stream, with limits."""
        return Incoming(requests, self)

    def check_size(self, chunk: bytes, *, is_last: bool) -> None:
        """Check the size of `chunk`.

        Raises:
            InvalidArgumentError: It is too large, or too small and not the last.
        """
        if len(chunk) > MAX_BYTES:
            raise protocol_error(
                f"a chunk has {len(chunk)} bytes; expected at most {MAX_BYTES}", "chunk"
            )
        if len(chunk) < MIN_BYTES and not is_last:
            raise small_chunk()


class Incoming(Generic[M]):
    """The messages of one upload, which must arrive fast enough."""

    def __init__(self, requests: AsyncIterator[M], limits: Chunks) -> None:
        self._requests = requests
        self._limits = limits
        self._waited = 0.0
        """Seconds spent waiting for messages since the rate was last checked."""
        self._num_bytes = 0
        """Bytes received in that time."""

    async def next(self) -> M | None:
        """Return the next message, or None at the end.

        Raises:
            DeadlineExceededError: None arrived in time, or they arrive too slowly.
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
                f"no message of the upload was received for {patience:g} s",
                reason="DEADLINE_EXCEEDED",
            ) from None
        # Only waiting counts: disk writes are not the caller's fault.
        self._waited += self._limits.clock() - begin
        if message is not None:
            self._num_bytes += message.ByteSize()
            self._judge()
        return message

    def _patience(self) -> float:
        """Return how many seconds to wait: later, no chunk could reach the minimum rate."""
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
            f"{self._num_bytes} bytes of the upload were received in {self._waited:.1f} s; "
            f"expected at least {self._limits.min_rate} per second",
            reason="UPLOAD_TOO_SLOW",
        )


def small_chunk() -> InvalidArgumentError:
    """Return the error for a chunk that is too small unless it is the last."""
    return protocol_error(f"a chunk other than the last has less than {MIN_BYTES} bytes", "chunk")


def protocol_error(message: str, field: str) -> InvalidArgumentError:
    """Return the error for upload messages in a wrong order or of a wrong size."""
    return InvalidArgumentError(message, reason="UPLOAD_PROTOCOL", field=field)
