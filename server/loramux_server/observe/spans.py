"""Interfaces of trace spans. Does not import OpenTelemetry, which most servers do not need."""

from collections.abc import Mapping
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool | list[str] | None]
"""Attributes of a span, named by the semantic conventions; those that are None are omitted."""

NO_ATTRIBUTES: Attributes = {}


class Span(Protocol):
    """An operation on behalf of a call. Times are seconds of the monotonic clock.

    Attributes never contain a prompt, an answer, a key, a path or an address.
    """

    @property
    def is_recorded(self) -> bool:
        """Whether the span is sampled, which is decided where the trace begins."""

    def child(self, name: str, begin: float, attributes: Attributes = NO_ATTRIBUTES) -> "Span":
        """Return a child span that began at `begin`."""

    def end(self, end: float, attributes: Attributes = NO_ATTRIBUTES, *, error: str = "") -> None:
        """End the span, once; `error` is the name of a gRPC status, empty for success."""


class CallSpan(Span, Protocol):
    """The span of a whole call."""

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits; empty if there is none."""
