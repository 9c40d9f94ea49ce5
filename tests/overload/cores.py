"""Cores for a server, and others for who asks it: neither takes time of the other's."""

import contextlib
import os
from collections.abc import Iterator


def halves() -> tuple[set[int], set[int]]:
    """Return the cores of the server, and those of who asks; all for both if there is but one."""
    cores = sorted(_own())
    half = len(cores) // 2
    return (set(cores[:half]), set(cores[half:])) if half else (set(cores), set(cores))


def stay_on(cores: set[int]) -> None:
    """Let this thread, and what it starts from now on, run on `cores` only."""
    if cores:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def starting_on(cores: set[int]) -> Iterator[None]:
    """Let the processes that this thread starts in the block run on `cores` only."""
    before = _own()
    stay_on(cores)
    try:
        yield
    finally:
        stay_on(before)


def _own() -> set[int]:
    """Return none where the system knows no such thing."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
