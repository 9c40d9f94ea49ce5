"""One matmul of a mixture of experts with LoRA applied: its definition in plain torch.

Legend: P pairs of a token and one of its experts, E experts, K input width, N output width, S runs
of pairs that share expert and adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.lora.experts_edit import ExpertRows
from loramux_server.lora.segments import Int32

if TYPE_CHECKING:
    from loramux_server.kernels.backend import AddLora, MakeLinear


class ExpertLinears(Protocol):
    """One linear layer per expert: the same matrix of every expert."""

    @property
    def outputs(self) -> int:
        """Output width of an expert."""

    def of(self, expert: int, x_PK: torch.Tensor) -> torch.Tensor:
        """Return the output of `expert` for `x_PK`, [P, N]."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """`ExpertLinears` with the weights as the model stores them."""

    weight_ENK: torch.Tensor
    bias_EN: torch.Tensor | None

    @property
    def outputs(self) -> int:
        """Output width of an expert."""
        return self.weight_ENK.shape[1]

    def of(self, expert: int, x_PK: torch.Tensor) -> torch.Tensor:
        """Return the output of `expert` for `x_PK`, [P, N]."""
        bias_N = None if self.bias_EN is None else self.bias_EN[expert]
        return torch.nn.functional.linear(x_PK, self.weight_ENK[expert], bias_N)


class LinearPerExpert:
    """`ExpertLinears` with a `Linear` per expert, which owns its weights."""

    def __init__(self, weights: ExpertWeights, make_linear: "MakeLinear") -> None:
        """Create a layer per expert with `make_linear`."""
        self.outputs = weights.outputs
        biases = [None] * len(weights.weight_ENK) if weights.bias_EN is None else weights.bias_EN
        self._linears = [
            make_linear(weight_NK, bias_N)
            for weight_NK, bias_N in zip(weights.weight_ENK, biases, strict=True)
        ]

    def of(self, expert: int, x_PK: torch.Tensor) -> torch.Tensor:
        """Return the output of `expert` for `x_PK`, [P, N]."""
        return self._linears[expert](x_PK)


@dataclass(frozen=True)
class Pairs:
    """Expert and adapter of each (token, expert) pair, sorted by expert, then adapter."""

    key_P: torch.Tensor
    """expert * num_kinds + number of the adapter's change; ascending."""
    num_kinds: int
    """Number of changes, plus one: number 0 means no change."""

    @cached_property
    def runs(self) -> "Runs":
        """Runs of equal keys; synchronizes with the device."""
        key_P = self.key_P.cpu().numpy()
        start_S = np.flatnonzero(np.diff(key_P, prepend=-1)).astype(np.int32)
        key_S = key_P[start_S]
        return Runs(
            start_S,
            np.append(start_S[1:], np.int32(len(key_P))),
            (key_S // self.num_kinds).astype(np.int32),
            (key_S % self.num_kinds).astype(np.int32),
        )


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of pairs that share expert and change."""

    start_S: Int32
    end_S: Int32
    expert_S: Int32
    change_S: Int32

    def of(self, change: int) -> tuple[Int32, Int32, Int32]:
        """Return first pair, pair after the last, and expert of each run with `change`."""
        mask = self.change_S == change
        return self.start_S[mask], self.end_S[mask], self.expert_S[mask]

    def by_expert(self) -> list[tuple[int, int, int]]:
        """Return (expert, first pair, pair after the last) of each expert that has pairs."""
        first = np.flatnonzero(np.diff(self.expert_S, prepend=-1))
        last = np.append(first[1:], len(self.expert_S)) - 1
        found = self.expert_S[first], self.start_S[first], self.end_S[last]
        return list(zip(*(each.tolist() for each in found), strict=True))


def multiply_experts(
    x_PK: torch.Tensor,
    linears: ExpertLinears,
    pairs: Pairs,
    changes: Sequence[ExpertRows | None],
    *,
    add_lora: "AddLora" = add_lora,
) -> torch.Tensor:
    """Return the output of each pair's expert for its input, as [P, N].

    Semantics, for a pair of expert e and of an adapter whose change is not None:

        y = linears.of(e, x) + scale * (x @ A[e].T) @ B[e]

    Args:
        x_PK: The inputs.
        linears: The base's matrix of each expert.
        pairs: Expert and adapter of each input.
        changes: The adapters' changes; the first has number 1.
        add_lora: The segmented low-rank matmul.
    """
    runs = pairs.runs
    y_PN = x_PK.new_empty(len(x_PK), linears.outputs)
    for expert, start, end in runs.by_expert():
        y_PN[start:end] = linears.of(expert, x_PK[start:end])
    columns = np.array([0, y_PN.shape[1]], np.int32)
    for number, rows in enumerate(changes, 1):
        if rows is not None:
            segments = rows.segments(*runs.of(number))
            add_lora(y_PN, x_PK, rows.a_RK, rows.b_RN, columns, segments, 0)
    return y_PN
