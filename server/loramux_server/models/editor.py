"""Modules of the model that adapters edit, for as long as a step runs in which they do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.edits import ModuleEdit

Rows = slice | torch.Tensor
"""Which rows of a module's input and output are an adapter's."""


class Editor:
    """Puts the edits of a step's adapters behind the modules that they are for."""

    def __init__(self, modules: Mapping[str, nn.Module], output: nn.Module) -> None:
        """Know the modules by name.

        Args:
            modules: Name in the base model -> what stands there.
            output: What makes logits; it sees the rows alone whose logits are needed.
        """
        self._modules = modules
        self._output = output

    @contextmanager
    def editing(self, given: StepInput) -> Iterator[None]:
        """Do the edits of the adapters of `given` while the block runs."""
        segments = given.segments
        if segments is None or segments.edits is None:
            yield
            return
        edits_of: dict[str, list[tuple[int, int, ModuleEdit]]] = {}
        borders = zip(segments.start_S.tolist(), segments.end_S.tolist(), strict=True)
        for (start, end), edits in zip(borders, segments.edits, strict=True):
            for name, edit in edits.modules.items() if edits else ():
                edits_of.setdefault(name, []).append((start, end, edit))
        hooks = []
        try:
            for name, found in edits_of.items():
                module = self._modules[name]
                rows = [(self._rows(module, given, start, end), edit) for start, end, edit in found]
                hooks.append(module.register_forward_hook(_hook(rows)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _rows(self, module: nn.Module, given: StepInput, start: int, end: int) -> Rows:
        if module is not self._output:
            return slice(start, end)
        return ((given.sampled_R >= start) & (given.sampled_R < end)).nonzero()[:, 0]


def _hook(found: list[tuple[Rows, ModuleEdit]]) -> Callable[..., torch.Tensor]:
    def edit_output(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> torch.Tensor:  # noqa: ANN401
        x: torch.Tensor = arguments[0][0]
        y: torch.Tensor = output[0].clone()
        for rows, edit in found:
            y[rows] = edit(module, x[rows], y[rows]).to(y.dtype)
        return y[None]

    return edit_output
