"""What those who handle a call need of its trace. Imports nothing: most servers have no traces."""

from collections.abc import Mapping
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool | list[str] | None]
"""What is told of a span, by the names of the semantic conventions; None is left out."""

NO_ATTRIBUTES: Attributes = {}


class Span(Protocol):
    """Something that takes time, on behalf of a call. Moments are seconds of the monotonic clock.

    What is told of one is never a prompt, an answer, a key, a path or an address.
    """

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see it; whoever began the trace decides."""

    def child(self, name: str, begin: float, attributes: Attributes = NO_ATTRIBUTES) -> "Span":
        """Return a part of this one that began at `begin`."""

    def end(self, end: float, attributes: Attributes = NO_ATTRIBUTES, *, error: str = "") -> None:
        """Let it end, once: well, or with `error`, the name of a gRPC status."""


class CallSpan(Span, Protocol):
    """The span of a whole call."""

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits; empty if there is none."""
