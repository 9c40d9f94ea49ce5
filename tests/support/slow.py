"""Work that takes as long as a test likes."""

import contextlib
import threading
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def slow(
    monkeypatch: pytest.MonkeyPatch, subject: object, method: str
) -> Iterator[threading.Event]:
    """Make a method wait until the block ends; yield what is set when it has begun."""
    has_begun, may_end = threading.Event(), threading.Event()
    work = getattr(subject, method)

    def delayed(*args: object) -> object:
        has_begun.set()
        assert may_end.wait(timeout=60)
        return work(*args)

    monkeypatch.setattr(subject, method, delayed)
    try:
        yield has_begun
    finally:
        may_end.set()
