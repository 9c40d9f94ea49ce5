"""What part of a time that a client measured is the server's, and what the machine's."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator

from tests.support.server import RunningServer

TICK = 0.005
"""Seconds that the sleeper sleeps."""


@contextlib.contextmanager
def repeating(act: Callable[[], None]) -> Iterator[None]:
    """Do `act` again and again on a thread of its own while the block runs."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.is_set():
            act()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def sleeper() -> Iterator[list[float]]:
    """Yield by how many seconds a thread that does nothing else wakes up late, again and again.

    No process that waits for a message can be woken up sooner.
    """
    late: list[float] = []

    def sleep() -> None:
        due = time.monotonic() + TICK
        time.sleep(TICK)
        late.append(time.monotonic() - due)

    with repeating(sleep):
        yield late


def log_size(server: RunningServer) -> int:
    """Return the bytes that the log of `server` has."""
    return server.log.stat().st_size


def own_refusals(server: RunningServer, begin: int) -> list[float]:
    """Return the seconds that each refusal took by the log, from its byte `begin` on.

    That is from the moment in which the frontend turned to a call until its status was made. None
    are there where the log is not in JSON.
    """
    with server.log.open("rb") as log:
        log.seek(begin)
        calls = [json.loads(line) for line in log if line.startswith(b"{")]
    return [call["seconds"] for call in calls if call.get("status") == "RESOURCE_EXHAUSTED"]
