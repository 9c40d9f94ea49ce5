"""How many requests somebody makes at once by one of their own, such as a list of prompts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TOGETHER_KEY = "x-requests-together"
"""Metadata with which a gateway tells into how many calls it cut one request."""
_MOST_DIGITS = 9

_together: ContextVar[int] = ContextVar("together", default=1)


def together() -> int:
    """Return how many requests the one that is handled is made with, itself included."""
    return _together.get()


def enter_together(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Take from the metadata of a call, in this task from now on, with how many it was made."""
    for key, value in metadata:
        is_count = isinstance(value, str) and value.isascii() and value.isdigit()
        if key == TOGETHER_KEY and is_count and len(value) <= _MOST_DIGITS:
            _together.set(max(1, int(value)))


@contextmanager
def making(count: int) -> Iterator[None]:
    """Let the block make `count` requests at once."""
    token = _together.set(count)
    try:
        yield
    finally:
        _together.reset(token)
