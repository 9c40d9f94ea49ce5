"""Edits of modules by adapters for models that read one text after another."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.edits import ModuleEdit
from loramux_server.lora.virtual import VirtualRun
from loramux_server.models.editor import Editor, known_tokens
from loramux_server.models.part_scheduler import PartScheduler


@dataclass(slots=True)
class _Text:
    """The edits of one text."""

    token_L: torch.Tensor
    edits: Mapping[str, ModuleEdit] = field(default_factory=dict)
    """Name of a module -> its edit."""
    virtual: VirtualRun | None = None
    start: int = 0
    """Index of its first token in the batch."""

    def embedded(self, y: torch.Tensor) -> torch.Tensor:
        """Return embeddings `y`, [1, L, K], with those of virtual tokens inserted."""
        if self.virtual is None:
            return y
        y = y.clone()
        places = self.virtual.place_V.to(y.device) - self.start
        y[0, places] = self.virtual.embeddings.to(y.device, y.dtype)
        return y


class TextEditor(Editor):
    """Applies the edits of a text's adapter to the outputs of modules while that text is read."""

    def __init__(
        self, modules: Mapping[str, nn.Module], scheduler: PartScheduler, embedding: nn.Module
    ) -> None:
        """Store the modules by name; `scheduler` tells which text is being read."""
        super().__init__(modules, nn.Identity(), {}, embedding)
        self._scheduler = scheduler

    @contextmanager
    def editing(self, given: StepInput) -> Iterator[None]:
        """Apply the edits of the adapters of `given` while the block runs."""
        if not (given.embedded or (given.segments and given.segments.edits)):
            yield
            return
        texts = _texts(given)
        hooks = []
        try:
            for name in {name for text in texts for name in text.edits}:
                module = self.modules[name]
                is_embedding = module is self._embedding
                if is_embedding:
                    hooks.append(module.register_forward_pre_hook(known_tokens, prepend=True))
                edit = self._edit(texts, name, is_embedding=is_embedding)
                hooks.append(module.register_forward_hook(edit))
            if given.embedded:
                assert self._embedding is not None
                hooks.append(
                    self._embedding.register_forward_hook(
                        lambda _, __, y: texts[self._scheduler.current].embedded(y)
                    )
                )
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _edit(
        self, texts: list[_Text], name: str, *, is_embedding: bool
    ) -> Callable[..., torch.Tensor]:
        def edit(module: nn.Module, given: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
            text = texts[self._scheduler.current]
            found = text.edits.get(name)
            if found is None:
                return y
            x = text.token_L if is_embedding else given[0][0]
            # An edit may write in place.
            return found(module, x, y[0].clone()).to(y.dtype)[None]

        return edit


def _texts(given: StepInput) -> list[_Text]:
    starts = given.attention.query_start_B.tolist()
    texts = [
        _Text(given.token_T[start:end], start=start) for start, end in itertools.pairwise(starts)
    ]
    at = {text.start: text for text in texts}
    if given.segments:
        for start, end, edits in given.segments.edited():
            for text in texts:
                if start <= text.start < end:
                    text.edits = {**edits.modules, **edits.outer_modules}
    for run in given.embedded:
        at[int(run.place_V[0])].virtual = run
    return texts
