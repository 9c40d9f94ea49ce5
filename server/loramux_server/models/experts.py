"""Mixture-of-experts layers with stacked weights, with the adapters' changes on top.

transformers exposes the layout of such experts to other implementations: see its
`use_experts_implementation`. Steps in which no adapter changes them run the model's own experts,
unless the backend has taken the weights, as the CPU's does.

Legend: T tokens, X experts chosen per token, P = T * X pairs of token and expert, E experts, K
input width, N output width of a matrix.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from loramux_adapters.experts import ExpertsShape
from loramux_server.kernels.backend import Backend
from loramux_server.kernels.experts import ExpertLinears, ExpertWeights, LinearPerExpert, Pairs
from loramux_server.kernels.sending import send
from loramux_server.lora.experts_edit import ExpertsEdit
from loramux_server.lora.segments import Segments
from loramux_server.models.routers import find_router
from loramux_server.models.step import Step

_ABOUT = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class _Change:
    """The change of one adapter to the experts, for its tokens."""

    start: int
    end: int
    edit: ExpertsEdit


class ServedExperts(nn.Module):
    """Takes the place of the experts of a layer."""

    def __init__(self, original: nn.Module, name: str, shape: ExpertsShape, step: Step) -> None:
        super().__init__()
        self.original = original
        """The model's own experts."""
        self.shape = shape
        self._signature = inspect.signature(original.forward)
        """Of the model's own experts; names of parameters differ between models."""
        self._name = name
        self._step = step
        self._names = (_first_name(original), "down_proj")
        self._linears: list[ExpertLinears] = [_weights(original, each) for each in self._names]
        """The first and the second matrix of all experts."""
        self._leaves_to_own = True
        """Whether the model's own experts run if no adapter changes them."""

    def attach(self, backend: Backend) -> None:
        """Hand the weights over to `backend`, if it takes them; call once."""
        if not backend.takes_experts or self.original.down_proj.dtype is not torch.float32:
            return
        for at, name in enumerate(self._names):
            weights = self._linears[at]
            assert isinstance(weights, ExpertWeights)
            self._linears[at] = LinearPerExpert(weights, backend.make_linear)
            parameter = getattr(self.original, name)
            parameter.data = parameter.data.new_empty(0)
        self._leaves_to_own = False

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the experts' output, given hidden states, chosen experts and their weights."""
        changes = list(_changes(self._step.segments, self._name))
        if self._leaves_to_own and not changes:
            found: torch.Tensor = self.original(*args, **kwargs)
            return found
        hidden, index_TX, weight_TX = self._signature.bind(*args, **kwargs).args
        x_TK = hidden.reshape(-1, hidden.shape[-1])
        return self.mixed(x_TK, index_TX, weight_TX, changes).view(hidden.shape)

    def mixed(
        self, x_TK: torch.Tensor, index_TX: torch.Tensor, weight_TX: torch.Tensor,
        changes: Sequence[_Change],
    ) -> torch.Tensor:  # fmt: skip
        """Return the experts' output for `x_TK`, with `changes` applied to their tokens."""
        original: Any = self.original
        num_chosen = index_TX.shape[1]
        order_P, pairs = _in_order(index_TX, changes)
        multiply = self._step.backend.multiply_experts
        first, last = self._linears
        x_PK = x_TK[order_P // num_chosen]
        y_PN = multiply(x_PK, first, pairs, [change.edit.first for change in changes])
        y_PN = original._apply_gate(y_PN) if original.has_gate else original.act_fn(y_PN)
        y_PK = multiply(y_PN, last, pairs, [change.edit.last for change in changes])
        if getattr(original, "has_post_expert_norm", False):  # newer than transformers 5.17
            y_PK = original.post_expert_norm(y_PK)
        y_PK = y_PK * weight_TX.reshape(-1)[order_P, None]
        back_PK = torch.empty_like(y_PK)
        back_PK[order_P] = y_PK
        return back_PK.view(len(x_TK), num_chosen, -1).sum(1).to(x_TK.dtype)


def find_experts(module: nn.Module, step: Step) -> dict[str, ServedExperts]:
    """Replace the experts of `module` that adapters can change, and their routers.

    They are tested on random numbers first; experts that compute something else are left alone.

    Returns:
        Name -> replacement.
    """
    found = {}
    for name, part in list(module.named_modules()):
        shape = _shape(part)
        if shape is None:
            continue
        served = ServedExperts(part, name, shape, step)
        if _is_same(served):
            module.set_submodule(name, served)
            router = find_router(module, name, (shape.count, shape.width), step)
            served.shape = replace(shape, router=router)
            found[name] = served
    return found


def _changes(segments: Segments | None, name: str) -> Iterator[_Change]:
    """Yield the changes of a step's adapters to the experts called `name`."""
    for start, end, edits in segments.edited() if segments else ():
        if name in edits.experts:
            yield _Change(start, end, edits.experts[name])


def _in_order(index_TX: torch.Tensor, changes: Sequence[_Change]) -> tuple[torch.Tensor, Pairs]:
    """Return the order of pairs sorted by expert and change, and the sorted pairs."""
    change_T = np.zeros(len(index_TX), np.int64)
    for number, change in enumerate(changes, 1):
        change_T[change.start : change.end] = number
    of_token_T = send(torch.from_numpy(change_T), index_TX.device)
    num_kinds = len(changes) + 1
    key_TX = index_TX * num_kinds + of_token_T[:, None]
    key_P, order_P = torch.sort(key_TX.reshape(-1), stable=True)
    return order_P, Pairs(key_P, num_kinds)


def _weights(original: Any, name: str) -> ExpertWeights:  # noqa: ANN401
    weight = getattr(original, name)
    bias_EN = getattr(original, f"{name}_bias") if original.has_bias else None
    return ExpertWeights(weight.transpose(1, 2) if original.is_transposed else weight, bias_EN)


def _shape(part: nn.Module) -> ExpertsShape | None:
    """Return the shape of experts `part`; None if it is something else."""
    if not all(hasattr(part, name) for name in _ABOUT):
        return None
    original: Any = part
    weights = [getattr(original, name, None) for name in (_first_name(original), "down_proj")]
    if any(
        type(each) is not nn.Parameter or each.dim() != 3 or not each.is_floating_point()
        for each in weights
    ):
        return None
    count, *sizes = original.down_proj.shape
    inner, width = sizes if original.is_transposed else sizes[::-1]
    return ExpertsShape(
        count, width, inner, bool(original.has_gate), bool(original.is_concatenated)
    )


def _first_name(original: Any) -> str:  # noqa: ANN401
    return "gate_up_proj" if original.has_gate else "up_proj"


def _is_same(served: ServedExperts) -> bool:
    """Return whether `served` computes the same as the model's own experts."""
    original: Any = served.original
    shape = served.shape
    weight = original.down_proj
    generator = torch.Generator().manual_seed(0)
    x_TK = torch.randn(5, shape.width, generator=generator).to(weight.device, weight.dtype)
    chosen = [torch.randperm(shape.count, generator=generator)[:2] for _ in x_TK]
    index_TX = torch.stack(chosen).to(weight.device)
    weight_TX = torch.rand(index_TX.shape, generator=generator).to(weight.device, weight.dtype)
    with torch.inference_mode():
        try:
            wanted = original(x_TK, index_TX, weight_TX)
            found = served.mixed(x_TK, index_TX, weight_TX, ())
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
    tolerance = max(_TOLERANCE, 4 * torch.finfo(weight.dtype).eps)
    error = (wanted - found).abs().max()
    return bool(error <= tolerance * (1 + wanted.abs().max()))
