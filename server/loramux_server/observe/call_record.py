"""What is known of the call being handled, for those who write it down."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from loramux_server.observe.spans import CallSpan

REQUEST_ID_KEY = "x-request-id"
"""Metadata that brings a call's id, and takes it back."""

_SUMS = ("parts", "prompt_tokens", "completion_tokens")
"""Notes that add up where a call has several parts."""


@dataclass(slots=True)
class CallRecord:
    """One call; filled in by whoever comes to know something of it."""

    method: str
    request_id: str
    reason: str = ""
    """The `ErrorInfo.reason` of its status, where that is not OK; of a stream that went on, that of
    the request on it that was refused last."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else is told of it: never a prompt, a key or a path."""
    span: CallSpan | None = None
    """Its part of a trace, where the server makes traces."""


_current: ContextVar[CallRecord | None] = ContextVar("call", default=None)


def current() -> CallRecord | None:
    """Return the call being handled, or None outside of one."""
    return _current.get()


def begin(record: CallRecord) -> None:
    """Let `record` be the call that this task handles from now on."""
    _current.set(record)


def note(**notes: object) -> None:
    """Add to what is told of the call being handled; outside of one, nothing happens."""
    if record := _current.get():
        record.notes.update(notes)


@contextmanager
def part() -> Iterator[None]:
    """Let the block do one of several parts of the call being handled, beside the others.

    What it notes is told of the call: numbers of tokens as their sum, with how many parts there
    were, and else what the part noted that ended first.
    """
    whole = _current.get()
    if whole is None:
        yield
        return
    own = CallRecord(whole.method, whole.request_id, span=whole.span)
    begin(own)
    try:
        yield
    finally:
        begin(whole)
        notes = own.notes | {"parts": 1}
        sums = {
            name: sum(found.get(name, 0) for found in (whole.notes, notes))
            for name in _SUMS
            if name in notes
        }
        whole.notes = notes | whole.notes | sums
