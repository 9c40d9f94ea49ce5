"""Heads: what a model for another task has in place of the layer of logits."""

import enum
from dataclasses import dataclass

from loramux_adapters.tensorfile import TensorInfo

MAX_LABELS = 4096


class Task(enum.StrEnum):
    """What a head reads, as `task_type` calls it."""

    SEQUENCE = "SEQ_CLS"
    """A text as a whole, by its last token."""
    TOKENS = "TOKEN_CLS"
    """Each token of a text, to label it."""
    SPANS = "QUESTION_ANS"
    """Each token of a question and a context, to say how well an answer begins and ends there."""

    @property
    def reads_all(self) -> bool:
        """Whether every token is read; else the last one alone."""
        return self is not Task.SEQUENCE

    @property
    def classifies(self) -> bool:
        """Whether the outputs are labels."""
        return self is not Task.SPANS


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer from the last hidden state of a token to a number for each label."""

    task: Task
    weight: TensorInfo
    """[labels, width]."""
    bias: TensorInfo | None = None
    """[labels]."""

    @property
    def num_labels(self) -> int:
        """How many labels there are; of `SPANS` two, for begin and end."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Width of the hidden state."""
        return self.weight.shape[1]

    @property
    def tensors(self) -> list[TensorInfo]:
        """All of its tensors."""
        return [self.weight, *([self.bias] if self.bias else [])]
