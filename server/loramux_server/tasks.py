"""Helpers for asyncio tasks."""

import asyncio
from contextlib import suppress
from typing import Any


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


async def end_of(work: "asyncio.Future[Any]") -> None:
    """Wait until `work` is done, however often the caller is cancelled meanwhile.

    Its error counts as retrieved: a cancelled caller does not report it.
    """
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()
