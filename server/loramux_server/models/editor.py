"""Modules of the model that adapters edit, for as long as a step runs in which they do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.edits import ModuleEdit
from loramux_server.lora.segments import Segments
from loramux_server.lora.virtual import VirtualRun

Rows = slice | torch.Tensor
"""Which rows of a module's input and output are an adapter's."""


class Editor:
    """Puts the edits of a step's adapters behind the modules that they are for."""

    def __init__(
        self, modules: Mapping[str, nn.Module], embedding: nn.Module, output: nn.Module
    ) -> None:
        """Know the modules by name.

        Args:
            modules: Name in the base model -> what stands there.
            embedding: What makes embeddings of tokens.
            output: What makes logits; it sees the rows alone whose logits are needed.
        """
        self._modules = modules
        self._embedding = embedding
        self._output = output

    @contextmanager
    def editing(self, given: StepInput) -> Iterator[None]:
        """Do the edits of the adapters of `given` while the block runs."""
        hooks = []
        try:
            for name, found in _edits_of(given.segments).items():
                module = self._modules[name]
                rows = [(self._rows(module, given, start, end), edit) for start, end, edit in found]
                hooks.append(module.register_forward_hook(_hook(rows)))
            if given.embedded:
                hooks.append(self._embedding.register_forward_hook(_embedding_hook(given.embedded)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _rows(self, module: nn.Module, given: StepInput, start: int, end: int) -> Rows:
        if module is not self._output:
            return slice(start, end)
        return ((given.sampled_R >= start) & (given.sampled_R < end)).nonzero()[:, 0]


def _edits_of(segments: Segments | None) -> dict[str, list[tuple[int, int, ModuleEdit]]]:
    """Return first token, token after the last, and edit, of all edits of each module."""
    if segments is None or segments.edits is None:
        return {}
    edits_of: dict[str, list[tuple[int, int, ModuleEdit]]] = {}
    borders = zip(segments.start_S.tolist(), segments.end_S.tolist(), strict=True)
    for (start, end), edits in zip(borders, segments.edits, strict=True):
        for name, edit in edits.modules.items() if edits else ():
            edits_of.setdefault(name, []).append((start, end, edit))
    return edits_of


def _embedding_hook(runs: tuple[VirtualRun, ...]) -> Callable[..., torch.Tensor]:
    def embed(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        y = output.clone()
        for run in runs:
            assert run.virtual.embedding_VK is not None
            given_VK = run.virtual.embedding_VK[run.numbers]
            y[0, run.place_V.to(y.device)] = given_VK.to(y.dtype)
        return y

    return embed


def _hook(found: list[tuple[Rows, ModuleEdit]]) -> Callable[..., torch.Tensor]:
    def edit_output(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> torch.Tensor:  # noqa: ANN401
        x: torch.Tensor = arguments[0][0]
        y: torch.Tensor = output[0].clone()
        for rows, edit in found:
            y[rows] = edit(module, x[rows], y[rows]).to(y.dtype)
        return y[None]

    return edit_output
