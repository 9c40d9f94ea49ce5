"""The pieces of an upload: how large they may be, and how long the next one may take."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from loramux.errors import DeadlineExceededError, InvalidArgumentError

MIN_BYTES = 64 << 10
MAX_BYTES = 1 << 20

M = TypeVar("M")


class Chunks:
    """What both ways of uploading demand of their messages."""

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout

    async def next(self, requests: AsyncIterator[M]) -> M | None:
        """Return the next message of an upload, or None at its end.

        Raises:
            DeadlineExceededError: None came for too long.
        """
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no message of the upload came for {self._idle_timeout:g} s",
                reason="DEADLINE_EXCEEDED",
            ) from None

    def check_size(self, chunk: bytes, *, is_last: bool) -> None:
        """Demand that `chunk` is as large as it has to be.

        Raises:
            InvalidArgumentError: It is not.
        """
        if len(chunk) > MAX_BYTES:
            raise protocol_error(f"a chunk has {len(chunk)} bytes; at most {MAX_BYTES}", "chunk")
        if len(chunk) < MIN_BYTES and not is_last:
            raise small_chunk()


def small_chunk() -> InvalidArgumentError:
    """Return the error for a chunk that may only be the last one."""
    return protocol_error(f"a chunk before the last has less than {MIN_BYTES} bytes", "chunk")


def protocol_error(message: str, field: str) -> InvalidArgumentError:
    """Return the error for messages of an upload in a wrong order or size."""
    return InvalidArgumentError(message, reason="UPLOAD_PROTOCOL", field=field)
