"""Edits of modules by adapters and images, for the duration of a step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.edits import ModuleEdit
from loramux_server.lora.segments import Segments
from loramux_server.lora.virtual import VirtualRun


class Editor:
    """Applies the edits of a step's adapters to the outputs of modules, with forward hooks."""

    def __init__(
        self, modules: Mapping[str, nn.Module], output: nn.Module, axes: Mapping[str, int],
        embedding: nn.Module | None = None, layers: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        """Store the modules by name.

        Args:
            modules: Name in the base model -> the module there.
            output: The output layer; it sees only the rows whose logits are needed.
            axes: Name -> token dimension of a module's input and output, 0 to 2; 1 by default. If
                it is not 0, dimension 0 is the one sequence that all tokens form.
            embedding: The input embedding; an adapter may have more tokens than it.
            layers: The model's own layers, in order.
        """
        self._embedding = embedding
        self._layers = layers
        self._axes = axes
        self.modules = modules
        """The modules by name, even if layers are run by the fused stack."""
        self._output = output

    @contextmanager
    def editing(self, given: StepInput) -> Iterator[None]:
        """Apply the edits of the adapters of `given` while the block runs."""
        hooks = []
        try:
            for name, found in _edits_of(given.segments).items():
                module = self.modules[name]
                rows = [(self._rows(module, given, number), each) for number, each in found]
                token_T = None
                if module is self._embedding:
                    token_T = given.token_T
                    # Prepended, to run before the hook that looks up rows, if there is one.
                    hooks.append(module.register_forward_pre_hook(known_tokens, prepend=True))
                is_new = module is self._output  # logits are large and not shared
                edit = _hook(rows, self._axes.get(name, 1), token_T, is_new=is_new)
                hooks.append(module.register_forward_hook(edit))
            if given.embedded:
                assert self._embedding is not None
                hooks.append(self._embedding.register_forward_hook(_embedding_hook(given.embedded)))
            for layer, runs in zip(self._layers, given.added, strict=False):
                hooks.append(layer.register_forward_hook(_adding_hook(runs)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _rows(self, module: nn.Module, given: StepInput, number: int) -> slice:
        if module is self._output:
            return given.rows_S[number]
        assert given.segments is not None
        return slice(int(given.segments.start_S[number]), int(given.segments.end_S[number]))


def _edits_of(segments: Segments | None) -> dict[str, list[tuple[int, ModuleEdit]]]:
    """Return module -> (segment number, edit) for all edits."""
    if segments is None or segments.edits is None:
        return {}
    edits_of: dict[str, list[tuple[int, ModuleEdit]]] = {}
    for number, edits in enumerate(segments.edits):
        for name, edit in {**edits.modules, **edits.outer_modules}.items() if edits else ():
            edits_of.setdefault(name, []).append((number, edit))
    return edits_of


def _embedding_hook(runs: tuple[VirtualRun, ...]) -> Callable[..., torch.Tensor]:
    def embed(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        y = output.clone()
        for run in runs:
            y[0, run.place_V.to(y.device)] = run.embeddings.to(y.device, y.dtype)
        return y

    return embed


def _adding_hook(runs: tuple[VirtualRun, ...]) -> Callable[..., torch.Tensor]:
    def add(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        y = output.clone()
        for run in runs:
            y[0, run.place_V.to(y.device)] += run.embeddings.to(y.device, y.dtype)
        return y

    return add


def _hook(
    found: list[tuple[slice, ModuleEdit]], axis: int, token_T: torch.Tensor | None, *, is_new: bool
) -> Callable[..., torch.Tensor]:
    """Return a hook that applies the edits in `found`; with `is_new`, in place."""

    def edit_output(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> torch.Tensor:  # noqa: ANN401
        x_T = _by_token(arguments[0], axis) if token_T is None else token_T
        y: torch.Tensor = output if is_new else output.clone()
        y_T = _by_token(y, axis)
        made = []
        for rows, edit in found:
            place = y_T[rows]
            piece = edit(module, x_T[rows], place)
            if piece is not place:  # else it was edited in place
                made.append((rows, piece))
        # Some adapters have logits for more tokens; the reader knows the vocabulary size of each
        # row.
        num_more = max((piece.shape[-1] for _, piece in made), default=0) - y.shape[-1]
        if num_more > 0:
            y = nn.functional.pad(y, (0, num_more))
            y_T = _by_token(y, axis)
        for rows, piece in made:
            y_T[rows, ..., : piece.shape[-1]] = piece.to(y.dtype)
        return y

    return edit_output


def _by_token(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return `tensor` with tokens as its first dimension, and without that of sequences."""
    return tensor if axis == 0 else tensor[0].movedim(axis - 1, 0)


def known_tokens(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[torch.Tensor]:
    """Clamp tokens to those of the base; the adapter's edit provides the rows of the others."""
    (token_T,) = arguments
    assert isinstance(module, nn.Embedding)
    return (token_T.clamp(max=module.num_embeddings - 1),)
