"""Results of embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity, Timing, Usage


@dataclass(frozen=True, slots=True)
class Embedding:
    """The result of a request. The vector of its first text is available directly."""

    request_id: str
    adapter: "AdapterIdentity | None"
    """None for the base model alone."""
    vectors: "tuple[Sequence[float], ...]"
    """One for each text, in order."""
    pooling: str
    """How hidden states were pooled: `last`, `mean` or `first`."""
    is_normalized: bool
    """Whether the vectors have length 1."""
    usage: "Usage"
    timing: "Timing"

    @property
    def vector(self) -> Sequence[float]:
        """The vector of the first text."""
        return self.vectors[0]
