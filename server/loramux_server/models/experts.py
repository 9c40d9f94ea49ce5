"""Experts of a mixture whose weights are in one parameter, with the adapters' changes on top.

transformers describes such experts to whoever computes them otherwise: see its
`use_experts_implementation`. Steps in which nobody changes them are left to the experts themselves.

Legend: T tokens, X experts that each token has, P = T * X pairs of token and expert, E experts,
K input width, N output width of a matrix, S runs of pairs that share expert and adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from loramux_adapters.experts import ExpertsShape
from loramux_server.lora.experts_edit import ExpertRows, ExpertsEdit
from loramux_server.lora.segments import Int32, Segments
from loramux_server.models.step import Step

_ABOUT = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class _Change:
    """What an adapter does to the experts of its tokens."""

    start: int
    end: int
    edit: ExpertsEdit


@dataclass(frozen=True, slots=True)
class _Runs:
    """Pairs in the order of their experts, and for each expert in the order of their adapters."""

    order_P: torch.Tensor
    """Which pair is at each place."""
    border_E: list[int]
    """First place of each expert, and the number of pairs."""
    start_S: Int32
    end_S: Int32
    expert_S: Int32
    change_S: Int32
    """Number of the change of each run; -1 where there is none."""

    def of(self, number: int) -> tuple[Int32, Int32, Int32]:
        """Return first place, place after the last and expert of the runs of a change."""
        mask = self.change_S == number
        return self.start_S[mask], self.end_S[mask], self.expert_S[mask]


class ServedExperts(nn.Module):
    """Stands where the experts of a layer stood."""

    def __init__(self, own: nn.Module, name: str, step: Step) -> None:
        super().__init__()
        self.own = own
        """The model's own."""
        self._name = name
        self._step = step

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return what experts make of tokens, given these, and which experts, and their weights."""
        changes = list(_changes(self._step.segments, self._name))
        if not changes:
            found: torch.Tensor = self.own(*args, **kwargs)
            return found
        hidden, index_TX, weight_TX = (*args, *kwargs.values())
        x_TK = hidden.reshape(-1, hidden.shape[-1])
        return self.mixed(x_TK, index_TX, weight_TX, changes).view(hidden.shape)

    def mixed(
        self, x_TK: torch.Tensor, index_TX: torch.Tensor, weight_TX: torch.Tensor,
        changes: Sequence[_Change],
    ) -> torch.Tensor:  # fmt: skip
        """Return what experts make of `x_TK` with the changes of some tokens' adapters."""
        own: Any = self.own
        num_chosen = index_TX.shape[1]
        runs = _runs(index_TX, changes, len(own.down_proj))
        y_PN = self._multiply(x_TK[runs.order_P // num_chosen], "first", runs, changes)
        y_PN = own._apply_gate(y_PN) if own.has_gate else own.act_fn(y_PN)
        y_PK = self._multiply(y_PN, "last", runs, changes)
        if own.has_post_expert_norm:
            y_PK = own.post_expert_norm(y_PK)
        y_PK = y_PK * weight_TX.reshape(-1)[runs.order_P, None]
        back_PK = torch.empty_like(y_PK)
        back_PK[runs.order_P] = y_PK
        return back_PK.view(len(x_TK), num_chosen, -1).sum(1).to(x_TK.dtype)

    def _multiply(
        self, x_PK: torch.Tensor, which: str, runs: _Runs, changes: Sequence[_Change]
    ) -> torch.Tensor:
        """Return what the `first` or `last` matrices make of `x_PK`, in the order of `runs`."""
        own: Any = self.own
        name = "down_proj" if which == "last" else _first_name(own)
        weight_ENK = getattr(own, name)
        if own.is_transposed:
            weight_ENK = weight_ENK.transpose(1, 2)
        bias_EN = getattr(own, f"{name}_bias") if own.has_bias else None
        y_PN = x_PK.new_empty(len(x_PK), weight_ENK.shape[1])
        for expert, (start, end) in enumerate(zip(runs.border_E, runs.border_E[1:], strict=False)):
            if start < end:
                torch.mm(x_PK[start:end], weight_ENK[expert].T, out=y_PN[start:end])
                if bias_EN is not None:
                    y_PN[start:end] += bias_EN[expert]
        columns = np.array([0, y_PN.shape[1]], np.int32)
        for number, change in enumerate(changes):
            rows: ExpertRows | None = getattr(change.edit, which)
            if rows is not None:
                add_lora = self._step.backend.add_lora_apart
                segments = rows.segments(*runs.of(number))
                add_lora(y_PN, x_PK, rows.a_RK, rows.b_RN, columns, segments, 0)
        return y_PN


def find_experts(module: nn.Module, step: Step) -> dict[str, ExpertsShape]:
    """Replace those experts of `module` that adapters can change, and return their shapes by name.

    They are tried on random numbers first; what computes something else here stays as it is.
    """
    found = {}
    for name, part in list(module.named_modules()):
        shape = _shape(part)
        if shape is None:
            continue
        served = ServedExperts(part, name, step)
        if _is_same(served, shape):
            module.set_submodule(name, served)
            found[name] = shape
    return found


def _changes(segments: Segments | None, name: str) -> Iterator[_Change]:
    """Yield what the adapters of a step do to the experts called `name`."""
    if segments is None or segments.edits is None:
        return
    borders = zip(segments.start_S.tolist(), segments.end_S.tolist(), strict=True)
    for (start, end), edits in zip(borders, segments.edits, strict=True):
        if edits and name in edits.experts:
            yield _Change(start, end, edits.experts[name])


def _runs(index_TX: torch.Tensor, changes: Sequence[_Change], num_experts: int) -> _Runs:
    change_T = np.zeros(len(index_TX), np.int64)
    for number, change in enumerate(changes, 1):
        change_T[change.start : change.end] = number
    num_kinds = len(changes) + 1
    expert_P = index_TX.reshape(-1).cpu().numpy()
    key_P = expert_P * num_kinds + np.repeat(change_T, index_TX.shape[1])
    order_P = np.argsort(key_P, kind="stable")
    sorted_P = key_P[order_P]
    start_S = np.flatnonzero(np.diff(sorted_P, prepend=-1)).astype(np.int32)
    key_S = sorted_P[start_S]
    return _Runs(
        order_P=torch.from_numpy(order_P).to(index_TX.device),
        border_E=np.searchsorted(sorted_P, np.arange(num_experts + 1) * num_kinds).tolist(),
        start_S=start_S,
        end_S=np.append(start_S[1:], np.int32(len(sorted_P))),
        expert_S=(key_S // num_kinds).astype(np.int32),
        change_S=(key_S % num_kinds - 1).astype(np.int32),
    )


def _shape(part: nn.Module) -> ExpertsShape | None:
    """Return the shape of the experts that `part` is; None if it is something else."""
    if not all(hasattr(part, name) for name in _ABOUT):
        return None
    own: Any = part
    weights = [getattr(own, name, None) for name in (_first_name(own), "down_proj")]
    if any(
        type(each) is not nn.Parameter or each.dim() != 3 or not each.is_floating_point()
        for each in weights
    ):
        return None
    count, *sizes = own.down_proj.shape
    inner, width = sizes if own.is_transposed else sizes[::-1]
    return ExpertsShape(count, width, inner, bool(own.has_gate), bool(own.is_concatenated))


def _first_name(own: Any) -> str:  # noqa: ANN401
    return "gate_up_proj" if own.has_gate else "up_proj"


def _is_same(served: ServedExperts, shape: ExpertsShape) -> bool:
    """Return whether `served` computes what the model's own experts do."""
    own: Any = served.own
    weight = own.down_proj
    generator = torch.Generator().manual_seed(0)
    x_TK = torch.randn(5, shape.width, generator=generator).to(weight.device, weight.dtype)
    chosen = [torch.randperm(shape.count, generator=generator)[:2] for _ in x_TK]
    index_TX = torch.stack(chosen).to(weight.device)
    weight_TX = torch.rand(index_TX.shape, generator=generator).to(weight.device, weight.dtype)
    with torch.inference_mode():
        try:
            wanted = own(x_TK, index_TX, weight_TX)
            found = served.mixed(x_TK, index_TX, weight_TX, ())
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
    tolerance = max(_TOLERANCE, 4 * torch.finfo(weight.dtype).eps)
    error = (wanted - found).abs().max()
    return bool(error <= tolerance * (1 + wanted.abs().max()))
