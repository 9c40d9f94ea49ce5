"""Results of question answering."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramux.types import AdapterIdentity, Timing, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of a context."""

    score: float
    """Probability, 0 to 1; it can exceed 1 only if several windows contain the answer."""
    begin: int
    """Position of its first character in the context, in code points as `str` counts."""
    end: int
    """Position after its last character."""
    text: str
    """Text of the span."""
    is_impossible: bool
    """Whether this is "no answer"; its text is then empty."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one question."""

    answers: tuple[Answer, ...]
    """Highest score first."""
    num_windows: int
    """Number of windows that the context was split into."""

    @property
    def text(self) -> str:
        """The text of the best answer; empty if there is none."""
        return self.answers[0].text if self.answers else ""

    @property
    def score(self) -> float:
        """Its score; 0 if there is none."""
        return self.answers[0].score if self.answers else 0.0


@dataclass(frozen=True, slots=True)
class QuestionAnswering:
    """The result of a request. The best answer to its first question is available directly."""

    request_id: str
    adapter: "AdapterIdentity"
    results: tuple[Answers, ...]
    """One for each question, in order."""
    usage: "Usage"
    timing: "Timing"

    @property
    def text(self) -> str:
        """The text of the best answer to the first question."""
        return self.results[0].text

    @property
    def score(self) -> float:
        """Its score."""
        return self.results[0].score
