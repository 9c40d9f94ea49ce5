"""Waiting for what happens in another process."""

import time
from collections.abc import Callable

import psutil


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Return whether `condition` holds within `seconds`, as soon as it does.

    A busy machine may take long for anything: what is never true costs the whole time, and what
    is soon true costs nothing of it.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has asked about since it ended does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
