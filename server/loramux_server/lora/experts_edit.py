"""Adapters' low-rank changes of the experts of a layer.

Legend: E experts, R rank rows per expert, K input width, N output width of its matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.lora.segments import Int32, Segments
from loramux_server.wire.weight_format import WeightFormat


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """The changes of one matrix of all experts, in a slab of their own.

    Expert e has `size` rows from e * size on. Unchanged experts have zeros.
    """

    a_RK: torch.Tensor
    """[E * R, K], float32, or 16-bit weights viewed as float32."""
    b_RN: torch.Tensor
    size: int
    """Rows of float32 per expert."""
    rank: int
    scale: float
    format: WeightFormat

    def segments(self, start_S: Int32, end_S: Int32, expert_S: Int32) -> Segments:
        """Return segments that apply the change of `expert_S` to rows `start_S` to `end_S`."""
        num_runs = len(start_S)
        return Segments(
            start_S=start_S,
            end_S=end_S,
            row_S=(expert_S * self.size).astype(np.int32),
            size_S=np.full(num_runs, self.size, np.int32),
            format_S=np.full(num_runs, self.format, np.int32),
            rank_GSP=np.full((1, num_runs, 1), self.rank, np.int32),
            scale_GSP=np.full((1, num_runs, 1), self.scale, np.float32),
        )


@dataclass(frozen=True, slots=True)
class ExpertsEdit:
    """The changes of one layer's experts; None: unchanged."""

    first: ExpertRows | None
    """Of gate and up, with outputs side by side, or of up alone."""
    last: ExpertRows | None
    """Of down."""


@dataclass(frozen=True, slots=True)
class ExpertPiece:
    """A change of outputs `begin` to `begin` + N, of all experts or of one."""

    a_ERK: torch.Tensor
    b_ERN: torch.Tensor
    scale: float
    begin: int = 0
    number: int | None = None
    """The expert, if it is a change of only one."""


def rows_of(
    pieces: Sequence[ExpertPiece], num_experts: int, features: tuple[int, int],
    form: WeightFormat, dtype: torch.dtype,
) -> ExpertRows:  # fmt: skip
    """Return the combined change of `pieces`; each gets its own rank rows in an expert.

    Args:
        pieces: At least one.
        num_experts: Experts of the layer.
        features: Input and output width of their matrix.
        form: The storage format.
        dtype: The same as a torch dtype.
    """
    used_E = [0] * num_experts
    for piece in pieces:
        for expert in _experts(piece, num_experts):
            used_E[expert] += piece.a_ERK.shape[1]
    # The largest scale, so that rescaling B of the other pieces cannot overflow.
    rank, scale = max(used_E), max(piece.scale for piece in pieces)
    per_row = torch.float32.itemsize // dtype.itemsize
    size = -(-rank // per_row)
    width_in, width_out = features
    a_ERK = torch.zeros(num_experts, size * per_row, width_in, dtype=dtype)
    b_ERN = torch.zeros(num_experts, size * per_row, width_out, dtype=dtype)
    used_E = [0] * num_experts
    for piece in pieces:
        _, num_rows, width = piece.b_ERN.shape
        columns = slice(piece.begin, piece.begin + width)
        # PEFT saves all with one scale, unless patterns (rank_pattern, alpha_pattern) differ.
        b_piece = piece.b_ERN if piece.scale == scale else piece.b_ERN * (piece.scale / scale)
        for at, expert in enumerate(_experts(piece, num_experts)):
            rows = slice(used_E[expert], used_E[expert] + num_rows)
            a_ERK[expert, rows] = piece.a_ERK[at].to(dtype)
            b_ERN[expert, rows, columns] = b_piece[at].to(dtype)
            used_E[expert] += num_rows
    return ExpertRows(_as_float32(a_ERK), _as_float32(b_ERN), size, rank, scale, form)


def _experts(piece: ExpertPiece, num_experts: int) -> range:
    return range(num_experts) if piece.number is None else range(piece.number, piece.number + 1)


def _as_float32(rows_ERK: torch.Tensor) -> torch.Tensor:
    """Return `rows_ERK` viewed as rows of float32."""
    return rows_ERK.view(-1).view(torch.float32).view(-1, rows_ERK.shape[2])
