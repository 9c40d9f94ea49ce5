"""What comes of classifying texts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity, Timing, Usage


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and how far it holds."""

    index: int
    label: str
    score: float
    """A probability, or the number itself in a regression."""


@dataclass(frozen=True, slots=True)
class TokenLabels:
    """The labels of one token."""

    token_id: int
    begin: int | None
    """Position of its first character in the text, in code points as `str` counts; None where it is
    of no text."""
    end: int | None
    """Position after its last character."""
    labels: tuple[LabelScore, ...]
    """Highest score first."""
    logits: tuple[float, ...]
    """Of all labels in order of their index, where they were asked for."""

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
    """The labels of one text, or of each of its tokens, whichever the adapter was trained for."""

    labels: tuple[LabelScore, ...]
    """Of the text, highest score first; empty where tokens are labelled."""
    logits: tuple[float, ...]
    """Of all labels in order of their index, where they were asked for."""
    tokens: tuple[TokenLabels, ...]
    """Empty where the text is labelled."""

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
    """The answer to one request. The label of its first text is at hand directly."""

    request_id: str
    adapter: "AdapterIdentity"
    problem_type: str
    """How scores come of logits: `single_label` (softmax), `multi_label` (sigmoid) or `regression`
    (as they are)."""
    labels: tuple[str, ...]
    """Names of all labels, in order of their index."""
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
