"""The record of the current call, for the call log, the audit log and traces."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from loramux_server.observe.spans import CallSpan

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of a call's id, in both directions."""

_SUMS = ("parts", "prompt_tokens", "completion_tokens")
"""Notes that are summed over the parts of a call."""


@dataclass(slots=True)
class CallRecord:
    """One call; filled in by whatever code handles it."""

    method: str
    request_id: str
    reason: str = ""
    """The `ErrorInfo.reason` of its status if that is not OK; for a stream that continued, that of
    the request on it that was refused last."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further fields for the logs: never a prompt, a key or a path."""
    span: CallSpan | None = None
    """Its span, if the server makes traces."""


_current: ContextVar[CallRecord | None] = ContextVar("call", default=None)


def current() -> CallRecord | None:
    """Return the current call's record, or None outside of a call."""
    return _current.get()


def begin(record: CallRecord) -> None:
    """Make `record` the current call of this task."""
    _current.set(record)


def note(**notes: object) -> None:
    """Add notes to the current call's record, if there is one."""
    if record := _current.get():
        record.notes.update(notes)


@contextmanager
def part() -> Iterator[None]:
    """Run the block as one of several concurrent parts of the current call.

    Its notes are merged into the call's: token counts are summed and parts counted; of other notes
    that several parts have, those of the part that ended first are kept.
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
