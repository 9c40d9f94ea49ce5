"""The part of a transformers task class that comes after the layers of its base model.

Legend: T tokens, K width of a hidden state, L labels.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from loramux_adapters.head import LABELS, Task
from loramux_adapters.head_contents import HEAD_NAMES
from loramux_server.models.pooler import Pooler

_CLASSES: dict[Task, tuple[Any, Any]] = {
    Task.SEQUENCE: (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    Task.TOKENS: (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    Task.SPANS: (AutoModelForQuestionAnswering, MODEL_FOR_QUESTION_ANSWERING_MAPPING),
}
_UNLIKELY = 4093
"""A number of labels that does not occur as a width in any model."""


class TaskHead:
    """A transformers task class with a stub in place of its base model's layers.

    It has no weights: callers pass them.
    """

    def __init__(self, module: PreTrainedModel, config: PreTrainedConfig, task: Task) -> None:
        """Build the class on the meta device.

        Args:
            module: The base model.
            config: Its config.
            task: The task of the class.

        Raises:
            ValueError: There is no such class, or it has another base model.
        """
        kind, known = _CLASSES[task]
        if type(config) not in known:
            raise ValueError(f"transformers has no class for it based on {type(module).__name__}")
        config = copy.deepcopy(config)
        config.num_labels = 2 if task is Task.SPANS else _UNLIKELY
        with torch.device("meta"):
            model = kind.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        base = model.base_model
        self.architecture = type(model).__name__
        if type(base) is not type(module):
            raise ValueError(
                f"{self.architecture} is based on {type(base).__name__}, not on "
                f"{type(module).__name__}"
            )
        self._task = task
        self._model = model
        self._base = base
        self._base_name = next(name for name, child in model.named_children() if child is base)
        self._given = _Given()
        self.parameters: dict[str, tuple[int, ...]] = {}
        """Name of each parameter in the class -> its shape."""

    @property
    def pooled(self) -> dict[str, str]:
        """Name of each parameter that belongs to the base model -> its name there."""
        first = f"{self._base_name}."
        return {
            name: name.removeprefix(first) for name in self.parameters if name.startswith(first)
        }

    @contextmanager
    def lending(self, module: PreTrainedModel) -> Iterator[bool]:
        """Lend `module` the children that only the class's base model has, with random weights.

        Yields:
            Whether there are any.
        """
        lent = {
            name: child
            for name, child in self._base.named_children()
            if getattr(module, name, None) is None
        }
        for name, child in lent.items():
            copied = copy.deepcopy(child).to_empty(device=module.device).to(module.dtype)
            for parameter in copied.parameters():
                nn.init.normal_(parameter, std=0.1)
            setattr(module, name, copied)
        try:
            yield bool(lent)
        finally:
            for name in lent:
                setattr(module, name, None)

    def take_place(self, pooler: Pooler) -> None:
        """Replace the base model by a stub with what comes after its layers, `pooler`."""
        self._given.take(self._base, pooler)
        setattr(self._model, self._base_name, self._given)
        self.parameters.update(
            (name, tuple(LABELS if size == _UNLIKELY else size for size in value.shape))
            for name, value in self._model.named_parameters()
        )

    def logits(
        self, parameters: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return the class's logits for given last hidden states: [1, L] or [T, L].

        Args:
            parameters: All of `self.parameters`.
            hidden_TK: The last hidden states of a text.
        """
        self._given.hidden_1TK = hidden_TK[None]
        try:
            # Token ids do not matter: the hidden states are given.
            token_1T = torch.zeros(1, len(hidden_TK), dtype=torch.long, device=hidden_TK.device)
            output = functional_call(self._model, dict(parameters), (), {"input_ids": token_1T})
        finally:
            self._given.hidden_1TK = None
        return self._logits(output)

    def logits_after_prefix(
        self, parameters: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits that PEFT computes when prefix keys and values precede a text.

        If a task class takes no `past_key_values`, PEFT (0.21, `_prefix_tuning_forward`) runs its
        base model, and then the child of the class that has the name of a head.
        """
        if "past_key_values" in inspect.signature(self._model.forward).parameters:
            return self.logits(parameters, hidden_TK)
        children = [name for name, _ in self._model.named_children()]
        head = next(
            name for name in children if any(each in name for each in HEAD_NAMES[self._task])
        )
        direct = _Direct(self._given, self._model.get_submodule(head), self._task)
        places = {self._base_name: "base", head: "head"}
        own = {
            f"{places[first]}.{rest}": value
            for name, value in parameters.items()
            if (first := name.partition(".")[0]) in places
            for rest in [name.partition(".")[2]]
        }
        self._given.hidden_1TK = hidden_TK[None]
        try:
            logits: torch.Tensor = functional_call(direct, own, ())
        finally:
            self._given.hidden_1TK = None
        return logits if self._task is Task.SEQUENCE else logits[0]

    def whole(
        self, module: PreTrainedModel, parameters: Mapping[str, torch.Tensor],
        token_1T: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Return the logits of the whole class for a text.

        Args:
            module: The base model.
            parameters: Those of `self.parameters` that do not belong to the base model.
            token_1T: The text.
        """
        setattr(self._model, self._base_name, _Widened(module))
        try:
            output = functional_call(self._model, dict(parameters), (), {"input_ids": token_1T})
        finally:
            setattr(self._model, self._base_name, self._given)
        return self._logits(output)

    def _logits(self, output: Any) -> torch.Tensor:  # noqa: ANN401
        logits: torch.Tensor
        if self._task is Task.SPANS:
            logits = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        else:
            logits = output.logits if self._task is Task.SEQUENCE else output.logits[0]
        return logits


class _Given(nn.Module):
    """A stub in place of a base model, which returns given hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_1TK: torch.Tensor | None = None
        self._pooler = Pooler()

    def take(self, base: PreTrainedModel, pooler: Pooler) -> None:
        """Adopt what `base` has after its layers, if it was built with all of it."""
        found = {name: getattr(base, name, None) for name in pooler.names}
        self._pooler = pooler if all(found.values()) else Pooler(output=pooler.output)
        for name in self._pooler.names:
            self.add_module(name, found[name])

    def forward(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        """Return the given hidden states, and the pooler's output for them."""
        hidden_1TK = self.hidden_1TK
        assert hidden_1TK is not None
        made = {"last_hidden_state": hidden_1TK}
        if self._pooler.names:
            pooled = hidden_1TK[:, 0] if self._pooler.takes_first else hidden_1TK
            for name in self._pooler.names:
                pooled = getattr(self, name)(pooled)
            made["pooler_output"] = pooled
        return self._pooler.output(**made)


class _Direct(nn.Module):
    """Passes a base model's output to a head, with nothing between."""

    def __init__(self, base: nn.Module, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.base = base
        self.head = head
        self._task = task

    def forward(self) -> torch.Tensor:
        """Return the head's output, in sequence tasks for the pooled state, if there is one."""
        made = self.base().to_tuple()
        is_pooled = self._task is Task.SEQUENCE and len(made) > 1
        logits: torch.Tensor = self.head(made[1 if is_pooled else 0])
        return logits


class _Widened(nn.Module):
    """A base model whose outputs are converted to float32."""

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the base model's output for a text."""
        output = self.module(*arguments, **options)
        for name in ("last_hidden_state", "pooler_output"):
            if getattr(output, name, None) is not None:
                output[name] = output[name].float()
        return output
