"""Heads: what a model for another task than text generation has in place of the output layer."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux_adapters.tensorfile import TensorInfo

MAX_LABELS = 4096


FEATURES = "FEATURE_EXTRACTION"
"""PEFT's task type of adapters trained on an `AutoModel`, which has no head."""


class Task(enum.StrEnum):
    """The task of a head, by PEFT's `task_type`."""

    SEQUENCE = "SEQ_CLS"
    """Classifies a text as a whole, by one token's hidden state."""
    TOKENS = "TOKEN_CLS"
    """Labels each token of a text."""
    SPANS = "QUESTION_ANS"
    """Scores each token of a question and a context as the begin and end of an answer."""

    @property
    def is_per_token(self) -> bool:
        """Whether the head reads every token, not one per text."""
        return self is not Task.SEQUENCE

    @property
    def classifies(self) -> bool:
        """Whether the outputs are labels."""
        return self is not Task.SPANS


@dataclass(frozen=True, slots=True)
class Head:
    """Maps the last hidden states of tokens to a number for each label.

    A linear layer, and any layers before it in transformers' class for the task.
    """

    task: Task
    module: str
    """Name of the linear layer, such as `score` or `classifier.out_proj`."""
    parameters: Mapping[str, TensorInfo]
    """Name of each parameter saved under the head's name -> its tensor."""
    activation: str = ""
    """For a head of the `adapters` library, the activation function between its layers, which form
    a plain sequence; empty for a head of transformers' class for the task."""

    @property
    def weight(self) -> TensorInfo:
        """Weight of the linear layer, [labels, width]."""
        return self.parameters[f"{self.module}.weight"]

    @property
    def bias(self) -> TensorInfo | None:
        """Bias of the linear layer, [labels]."""
        return self.parameters.get(f"{self.module}.bias")

    @property
    def weights(self) -> list[str]:
        """Names of all weights."""
        return [name for name in self.parameters if name.endswith(".weight")]

    @property
    def is_linear(self) -> bool:
        """Whether it is a single linear layer."""
        own = {f"{self.module}.weight", f"{self.module}.bias"}
        return "." not in self.module and self.parameters.keys() <= own

    @property
    def num_labels(self) -> int:
        """Number of labels; for `SPANS` two, begin and end."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Input width of the linear layer."""
        return self.weight.shape[1]

    @property
    def tensors(self) -> list[TensorInfo]:
        """All of its tensors."""
        return list(self.parameters.values())


LABELS = 0
"""Stands in a shape for the number of labels, which differs between adapters."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What a base model has after its layers for a task: the shapes of the head's parameters."""

    architecture: str
    """transformers' class for the task."""
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each parameter after the layers, as in that class -> its shape."""
    brought: tuple[str, ...] = ()
    """Those that the base's checkpoint has, so that an adapter need not bring them."""
    fault: str = ""
    """Why heads for the task are not supported; empty if they are."""
    cache_fault: str = ""
    """Why they are not supported beside a KV prefix; empty if they are."""

    @property
    def modules(self) -> set[str]:
        """Names of the modules of these parameters."""
        return {name.rpartition(".")[0] for name in self.parameters}

    @property
    def module(self) -> str:
        """Name of the layer that outputs the labels; empty if there is none."""
        for name, shape in self.parameters.items():
            if shape[0] == LABELS and len(shape) == 2:
                return name.rpartition(".")[0]
        return ""
