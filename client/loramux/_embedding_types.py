"""What comes of embedding texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity, Timing, Usage


@dataclass(frozen=True, slots=True)
class Embedding:
    """The answer to one request. The vector of its first text is at hand directly."""

    request_id: str
    adapter: "AdapterIdentity | None"
    """None for the base model alone."""
    vectors: "tuple[Sequence[float], ...]"
    """One for each text, in order."""
    pooling: str
    """How the hidden states of a text became one: `last`, `mean` or `first`."""
    is_normalized: bool
    """Whether vectors have length 1."""
    usage: "Usage"
    timing: "Timing"

    @property
    def vector(self) -> Sequence[float]:
        """That of the first text."""
        return self.vectors[0]
