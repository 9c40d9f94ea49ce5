"""What a model makes of its last hidden states behind its layers, found by running it.

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
    """Modules that make one state of a text, each of what the one before it made."""

    names: tuple[str, ...] = ()
    """Of the modules in the model, in order; none where it makes nothing."""
    takes_first: bool = False
    """Whether the first takes the state of the first token, [1, K]; else all, [1, T, K]."""
    output: Any = BaseModelOutput
    """The class of what the model returns."""


def find_pooler(module: PreTrainedModel, input_ids: torch.Tensor) -> Pooler:
    """Return what makes `pooler_output` of `module`, by how it reads the text `input_ids`, [1, T].

    Raises:
        ValueError: It is made in a way that is not known.
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
        f"{type(module).__name__} makes its pooler_output of something else than its last hidden "
        "states, or of all but the first token's"
    )
