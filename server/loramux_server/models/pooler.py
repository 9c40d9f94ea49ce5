"""What a model computes from its last hidden states after its layers, found by running it.

Legend: T tokens, K width of a hidden state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True, slots=True)
class Pooler:
    """Modules that compute one vector of a text, each from the output of the one before."""

    names: tuple[str, ...] = ()
    """Their names in the model, in order; empty if it has no pooler."""
    takes_first: bool = False
    """Whether the first one takes the first token's state, [1, K]; otherwise all, [1, T, K]."""
    output: Any = BaseModelOutput
    """The class of the model's output."""


def find_pooler(module: PreTrainedModel, input_ids: torch.Tensor) -> Pooler:
    """Return how `module` computes `pooler_output`, determined on the text `input_ids`, [1, T].

    Raises:
        ValueError: It is computed in an unknown way.
    """
    calls: list[tuple[str, Any, Any]] = []

    def note(name: str) -> Any:  # noqa: ANN401
        def hook(_: nn.Module, given: Sequence[Any], made: Any) -> None:  # noqa: ANN401
            calls.append((name, given[0] if given else None, made))

        return hook

    handles = [child.register_forward_hook(note(name)) for name, child in module.named_children()]
    try:
        output = module(input_ids=input_ids)
    finally:
        for handle in handles:
            handle.remove()
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        return Pooler(output=type(output))
    names: list[str] = []
    wanted = pooled
    for name, given, made in reversed(calls):
        if made is wanted:
            names.insert(0, name)
            wanted = given
    hidden_1TK = output.last_hidden_state
    for takes_first, taken in ((False, hidden_1TK), (True, hidden_1TK[:, 0])):
        if names and isinstance(wanted, torch.Tensor) and torch.equal(wanted, taken):
            return Pooler(tuple(names), takes_first, type(output))
    raise ValueError(
        f"{type(module).__name__} does not compute its pooler_output from its last hidden states, "
        "or from that of the first token"
    )
