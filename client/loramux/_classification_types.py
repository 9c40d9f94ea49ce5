"""Results of classification."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity, Timing, Usage


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its score."""

    index: int
    label: str
    score: float
    """A probability, or for regression the value itself."""


@dataclass(frozen=True, slots=True)
class TokenLabels:
    """The labels of one token."""

    token_id: int
    begin: int | None
    """Position of its first character in the text, in code points as `str` counts; None if it is
    not part of the text."""
    end: int | None
    """Position after its last character."""
    labels: tuple[LabelScore, ...]
    """Highest score first."""
    logits: tuple[float, ...]
    """Of all labels, in the order of their indices, if requested."""

    @property
    def label(self) -> str:
        """The label with the highest score."""
        return self.labels[0].label

    @property
    def score(self) -> float:
        """Its score."""
        return self.labels[0].score


@dataclass(frozen=True, slots=True)
class TextLabels:
    """The labels of one text, or of each of its tokens, depending on the adapter's task."""

    labels: tuple[LabelScore, ...]
    """Labels of the text, highest score first; empty for token classification."""
    logits: tuple[float, ...]
    """Of all labels, in the order of their indices, if requested."""
    tokens: tuple[TokenLabels, ...]
    """Empty for text classification."""

    @property
    def label(self) -> str:
        """The label with the highest score."""
        return self.labels[0].label

    @property
    def score(self) -> float:
        """Its score."""
        return self.labels[0].score


@dataclass(frozen=True, slots=True)
class Classification:
    """The result of a request. The label of its first text is available directly."""

    request_id: str
    adapter: "AdapterIdentity"
    problem_type: str
    """How scores are computed from logits: `single_label` (softmax), `multi_label` (sigmoid) or
    `regression` (unchanged)."""
    labels: tuple[str, ...]
    """Names of all labels, in the order of their indices."""
    results: tuple[TextLabels, ...]
    """One for each text, in order."""
    usage: "Usage"
    timing: "Timing"

    @property
    def label(self) -> str:
        """The label of the first text."""
        return self.results[0].label

    @property
    def score(self) -> float:
        """Its score."""
        return self.results[0].score
