"""Routers of mixture-of-experts layers, with adapters' weights in place of the model's.

Routing is not additive, so the tokens of an adapter that changes the router go through it again.

Legend: T tokens, E experts, K width of a token.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from loramux_server.lora.module_edits import RouterEdit, replaced
from loramux_server.models.step import Step

_NUM_TOKENS = 5


class ServedRouter(nn.Module):
    """Takes the place of a router."""

    def __init__(self, original: nn.Module, name: str, step: Step) -> None:
        super().__init__()
        self.original = original
        """The model's own router."""
        self._name = name
        self._step = step

    @property
    def weight(self) -> torch.Tensor:
        """The model's own weight, [E, K]."""
        weight: torch.Tensor = self.original.weight  # type: ignore[assignment]
        return weight

    def forward(self, hidden: torch.Tensor) -> Any:  # noqa: ANN401
        """Return the routing of each token of `hidden`, in the form of the model's own router."""
        found = self.original(hidden)
        x_TK = hidden.reshape(-1, hidden.shape[-1])
        for start, end, edit in self._edits():
            with replaced(self.original, {"weight": edit.weight(self.weight)}):
                piece = self.original(x_TK[start:end])
            for whole_T, part_T in zip(found, piece, strict=True):
                whole_T[start:end] = part_T
        return found

    def _edits(self) -> Iterator[tuple[int, int, RouterEdit]]:
        """Yield start, end and change of the segments that change this router."""
        segments = self._step.segments
        for start, end, edits in segments.edited() if segments else ():
            if self._name in edits.routers:
                yield start, end, edits.routers[self._name]


def find_router(module: nn.Module, experts: str, size: tuple[int, int], step: Step) -> str:
    """Replace the router of the experts called `experts`, and return its name.

    Args:
        module: The model.
        experts: Name of the experts in it.
        size: Number of experts, and width of a token.
        step: The step that runs.

    Returns:
        The name; empty if there is no router that can be changed.
    """
    parent = experts.rpartition(".")[0]
    for child, part in module.get_submodule(parent).named_children():
        weight = getattr(part, "weight", None)
        if (
            type(weight) is nn.Parameter
            and tuple(weight.shape) == size
            and _is_router(part, size[1])
        ):
            name = f"{parent}.{child}"
            module.set_submodule(name, ServedRouter(part, name, step))
            return name
    return ""


def _is_router(part: nn.Module, width: int) -> bool:
    """Return whether `part` maps hidden states alone to a tuple of tensors with a row per token."""
    weight: Any = part.weight
    x_TK = torch.ones(_NUM_TOKENS, width, device=weight.device, dtype=weight.dtype)
    with torch.inference_mode():
        try:
            found = part(x_TK)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
    return isinstance(found, tuple) and all(
        isinstance(each, torch.Tensor) and len(each) == _NUM_TOKENS for each in found
    )
