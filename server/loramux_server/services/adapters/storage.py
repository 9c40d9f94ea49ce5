"""The store's blocking calls and errors, for services that must neither block nor leak them."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy.exc

from loramux.errors import LoramuxError, ResourceExhaustedError, UnavailableError
from loramux_server.store.files import FULL
from loramux_server.tasks import end_of

T = TypeVar("T")

_POSTGRES_FULL = "53100"


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn disk and database errors into gRPC errors, without paths or SQL."""
    try:
        yield
    except LoramuxError:  # some are OSErrors as well
        raise
    except (OSError, sqlalchemy.exc.OperationalError) as error:
        if isinstance(error, OSError):
            is_full, cause = error.errno in FULL, error.strerror
        else:
            state = getattr(error.orig, "sqlstate", None)
            is_full = state == _POSTGRES_FULL or "disk is full" in str(error.orig)
            cause = "the database is not writable"
        if is_full:
            raise ResourceExhaustedError(
                "the store is full", reason="STORE_FULL", retry_delay=60.0
            ) from error
        raise UnavailableError(
            f"the store is not available: {cause}", reason="STORE_UNAVAILABLE", retry_delay=5.0
        ) from error


async def stoppable(work: Callable[[Callable[[], bool]], T], executor: Executor | None = None) -> T:
    """Run the blocking `work` in a thread of `executor`, and return its result.

    If the caller is cancelled, this still waits for `work`, which can check for that by the
    function that it is passed.
    """
    cancelled = threading.Event()
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(executor, work, cancelled.is_set)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancelled.set()
        await end_of(future)
        raise
