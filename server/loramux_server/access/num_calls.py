"""The number of calls into which one client request was split, such as a list of prompts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NUM_CALLS_KEY = "x-requests-together"
"""Metadata in which a gateway sends the number of calls into which it split a request."""
_MOST_DIGITS = 9

_num_calls: ContextVar[int] = ContextVar("num_calls", default=1)


def num_calls() -> int:
    """Return the number of calls of the current request, this one included."""
    return _num_calls.get()


def read_num_calls(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Set that number from the metadata of a call, for this task from now on."""
    for key, value in metadata:
        is_count = isinstance(value, str) and value.isascii() and value.isdigit()
        if key == NUM_CALLS_KEY and is_count and len(value) <= _MOST_DIGITS:
            _num_calls.set(max(1, int(value)))


@contextmanager
def set_num_calls(count: int) -> Iterator[None]:
    """Set that number to `count` within the block."""
    token = _num_calls.set(count)
    try:
        yield
    finally:
        _num_calls.reset(token)
