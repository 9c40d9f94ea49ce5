"""Heads: what a model for another task has in place of the layer of logits."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux_adapters.tensorfile import TensorInfo

MAX_LABELS = 4096


FEATURES = "FEATURE_EXTRACTION"
"""What PEFT calls the task of an adapter of what `AutoModel` loads, which has no head."""


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
    """From the last hidden states of tokens to a number for each label.

    A linear layer, and whatever other layers stand before it in transformers' class for the task.
    """

    task: Task
    module: str
    """Name of the linear layer, such as `score` or `classifier.out_proj`."""
    parameters: Mapping[str, TensorInfo]
    """Name of each parameter that was saved under the head's name -> its tensor."""
    activation: str = ""
    """Of a head of the `adapters` library, what is between its layers, which are one behind the
    other; empty of one that is as transformers' class for the task has it."""

    @property
    def weight(self) -> TensorInfo:
        """Of the linear layer, [labels, width]."""
        return self.parameters[f"{self.module}.weight"]

    @property
    def bias(self) -> TensorInfo | None:
        """Of the linear layer, [labels]."""
        return self.parameters.get(f"{self.module}.bias")

    @property
    def weights(self) -> list[str]:
        """Names of all weights."""
        return [name for name in self.parameters if name.endswith(".weight")]

    @property
    def is_linear(self) -> bool:
        """Whether it is that layer alone."""
        own = {f"{self.module}.weight", f"{self.module}.bias"}
        return "." not in self.module and self.parameters.keys() <= own

    @property
    def num_labels(self) -> int:
        """How many labels there are; of `SPANS` two, for begin and end."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Width of what the linear layer takes."""
        return self.weight.shape[1]

    @property
    def tensors(self) -> list[TensorInfo]:
        """All of its tensors."""
        return list(self.parameters.values())


LABELS = 0
"""Stands in a shape for the number of labels, which each adapter has its own of."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What a base model has behind its layers for a task, and reads hidden states with."""

    architecture: str
    """transformers' class for the task."""
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each parameter behind the layers, as that class has it -> its shape."""
    brought: tuple[str, ...] = ()
    """Those of them that were saved with the base, and that an adapter need not bring."""
    fault: str = ""
    """Why heads for the task are not served; empty where they are."""
    cache_fault: str = ""
    """Why they are not beside keys and values that stand before a text."""

    @property
    def modules(self) -> set[str]:
        """Names of the modules that have these parameters."""
        return {name.rpartition(".")[0] for name in self.parameters}

    @property
    def module(self) -> str:
        """Name of the layer that makes a number for each label."""
        for name, shape in self.parameters.items():
            if shape[0] == LABELS and len(shape) == 2:
                return name.rpartition(".")[0]
        return ""
