"""Blocking work of the store beside the event loop, and its errors."""

import asyncio
import errno
import threading

import pytest
import sqlalchemy.exc

from loramux.errors import (
    DeadlineExceededError,
    LoramuxError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.tasks import finished


def database_error(text: str) -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("INSERT", {}, Exception(text))


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (OSError(errno.ENOSPC, "no space"), ResourceExhaustedError, "STORE_FULL"),
        (OSError(errno.EDQUOT, "quota"), ResourceExhaustedError, "STORE_FULL"),
        (database_error("database or disk is full"), ResourceExhaustedError, "STORE_FULL"),
        (OSError(errno.EIO, "/secret/path"), UnavailableError, "STORE_UNAVAILABLE"),
        (database_error("disk I/O error"), UnavailableError, "STORE_UNAVAILABLE"),
    ],
    ids=["space", "quota", "database-full", "io", "database-io"],
)
def test_an_error_of_the_disk_becomes_one_of_ours(
    error: Exception, kind: type[LoramuxError], reason: str
) -> None:
    with pytest.raises(kind) as caught, storage_errors():
        raise error
    assert caught.value.reason == reason
    assert caught.value.retry_delay


@pytest.mark.parametrize("kind", [UnavailableError, DeadlineExceededError, PermissionDeniedError])
def test_an_error_of_ours_stays_what_it_is(kind: type[LoramuxError]) -> None:
    # These are OSErrors too, as callers of the client expect.
    assert issubclass(kind, OSError)
    error = kind("the engine died", reason="ENGINE_UNAVAILABLE")
    with pytest.raises(kind) as caught, storage_errors():
        raise error
    assert caught.value is error


async def test_work_in_a_thread_is_over_before_its_caller_gives_up() -> None:
    started, may_end = threading.Event(), threading.Event()
    events: list[str] = []

    def work() -> str:
        started.set()
        may_end.wait(timeout=60)
        events.append("done")
        return "result"

    task = asyncio.create_task(finished(asyncio.to_thread(work)))
    await asyncio.to_thread(started.wait, 30)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["done"]
    assert await finished(asyncio.to_thread(work)) == "result"
