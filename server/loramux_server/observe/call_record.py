"""What is known of the call being handled, for those who write it down."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from loramux_server.observe.spans import CallSpan

REQUEST_ID_KEY = "x-request-id"
"""Metadata that brings a call's id, and takes it back."""


@dataclass(slots=True)
class CallRecord:
    """One call; filled in by whoever comes to know something of it."""

    method: str
    request_id: str
    reason: str = ""
    """The `ErrorInfo.reason` of its status, where that is not OK."""
    notes: dict[str, object] = field(default_factory=dict)
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
