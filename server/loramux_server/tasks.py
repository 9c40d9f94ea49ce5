"""Helpers for asyncio tasks."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


def in_background(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start `work` as a task that nobody awaits; if it fails, that is logged at once."""
    task = asyncio.create_task(work)
    task.add_done_callback(_log_failure)
    return task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("%s ended and is not started again", task.get_coro(), exc_info=error)


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


async def finished(work: "Coroutine[Any, Any, T] | asyncio.Future[T]") -> T:
    """Await `work` to its end, even if the caller is cancelled, and return its result.

    A thread cannot be cancelled, and nothing may be cleaned up while it still runs.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await end_of(task)
        raise


async def end_of(work: "asyncio.Future[Any]") -> None:
    """Wait until `work` is done, however often the caller is cancelled meanwhile.

    Its error counts as retrieved: a cancelled caller does not report it.
    """
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()
