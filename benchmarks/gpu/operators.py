"""Shrink and expand of a library, ready to be called: the interface of all peers.

Legend: T tokens, N output width of a part, R rank, S planes, J columns.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch

from benchmarks.fixture import Shape
from benchmarks.gpu.operands import LoraOperands, lora_calls
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.lora.row_allocator import RowSize


@dataclass(frozen=True, slots=True)
class Operators:
    """The same work for each copy of the weights, with a shared input and output."""

    shrink: list[Callable[[], object]]
    expand: list[Callable[[], object]]
    """Adds to y the product of B and the h that shrink wrote."""
    both: list[Callable[[], object]]
    written: list[torch.Tensor]
    """All outputs."""
    h_PTR: Callable[[], list[torch.Tensor]]
    """The output of shrink, for each part; columns beyond the rank are undefined."""
    y_PTN: Sequence[torch.Tensor]
    kept: list[torch.Tensor] = field(default_factory=list)
    """Keeps alive what they read by address."""


class Peer(Protocol):
    """A library with importable operators."""

    def __init__(self, path: Path) -> None:
        """Import from a checkout, or from the folder that contains the package."""

    def operators(self, operands: LoraOperands) -> Operators:
        """Return its operators on the numbers of `operands`."""


def stand_in(name: str, folder: Path | None = None, **contents: object) -> None:
    """Make `name` a module with `contents`; with `folder`, the package in that folder."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=folder is not None)
    if folder:
        module.__path__ = [str(folder)]
    vars(module).update(contents)
    sys.modules[name] = module


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a call that makes all `calls`."""
    return partial(_call, calls)


def _call(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def own(group: str, shape: Shape, operands: LoraOperands, plan: Plan) -> Operators:
    """Return the operators of this server for `group`."""
    calls = lora_calls(group, shape, operands, plan)
    (shrink, _), (expand, _) = calls["shrink"], calls["expand"]
    return Operators(
        shrink,
        expand,
        list(map(in_turn, zip(shrink, expand, strict=True))),
        [operands.planes_STJ, operands.y_TN],
        partial(_own_h, operands),
        operands.y_TN.split_with_sizes(operands.outputs, 1),
    )


def _own_h(operands: LoraOperands) -> list[torch.Tensor]:
    h_TJ = operands.planes_STJ.sum(0)
    h_PTR = [h_TJ.new_zeros(len(h_TJ), max(operands.ranks)) for _ in operands.outputs]
    for i, rank in enumerate(operands.ranks):
        tokens = slice(operands.borders[i], operands.borders[i + 1])
        for part, h_TR in enumerate(h_PTR):
            first = part * RowSize().rows_of(rank)
            h_TR[tokens, :rank] = h_TJ[tokens, first : first + rank]
    return h_PTR
