"""Fused LoRA update, residual addition and RMS norm for the next block.

Legend: T tokens, K model width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels import pointwise
from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.gpu.arguments import low_rank_arguments
from loramux_server.kernels.gpu.change import changed, changed_block, prefetch_lora
from loramux_server.kernels.gpu.dependent_launch import launch_options, wait_for_predecessor
from loramux_server.kernels.gpu.tiles import LowRank, Tiles


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration."""

    k: int = 512
    """Columns per program where adapters are applied; a power of two, 16 or more."""
    num_warps: int = 4
    """Warps of such a program."""
    row_warps: int = 8
    """Warps of a program without adapters, which holds a whole row in registers."""


DEFAULT = Blocks()


@dataclass(frozen=True, slots=True)
class NormScratch:
    """Memory through which the programs of a row cooperate.

    Allocated once: each launch resets it for the next.
    """

    square_TS: torch.Tensor
    """Sum of squares of each piece of a row, float32."""
    arrived_T: torch.Tensor
    """Number of finished pieces, int32; 0 before and after a launch."""

    @staticmethod
    def make(num_tokens: int, width: int, device: torch.device) -> "NormScratch":
        """Allocate for rows of `width`, in pieces of the smallest size."""
        return NormScratch(
            torch.empty(num_tokens, triton.cdiv(width, 16), dtype=torch.float32, device=device),
            torch.zeros(num_tokens, dtype=torch.int32, device=device),
        )


def residual_norm(
    hidden_TK: torch.Tensor,
    y_TK: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    norm: Norm | None,
    out_TK: torch.Tensor | None,
    scratch: NormScratch | None = None,
) -> None:
    """Add `y_TK`, with LoRA applied, to `hidden_TK`, in place; write the sum's norm to `out_TK`.

    The sum is rounded once, and the rounded sum is normalized. Without a norm only the sum is
    written. Only the kernel uses `scratch`.
    """
    sum_TK = hidden_TK.float() + changed(y_TK, low_rank, (0, y_TK.shape[1]), tiles)
    hidden_TK.copy_(sum_TK)
    if norm is not None and out_TK is not None:
        out_TK.copy_(pointwise.rms_norm(hidden_TK, norm.weight_K, norm.epsilon))


def residual_norm_triton(
    hidden_TK: torch.Tensor,
    y_TK: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    norm: Norm | None,
    out_TK: torch.Tensor | None,
    scratch: NormScratch,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Implement `residual_norm`.

    With adapters a row is split among programs, so that no single one reads all of B; the one that
    finishes last writes the norm. Sums of squares are added in column order.
    """
    width = hidden_TK.shape[1]
    row = triton.next_power_of_2(width)
    block = row if low_rank is None else min(blocks.k, row)
    num_pieces = triton.cdiv(width, block)
    _residual_norm[(len(hidden_TK), num_pieces)](
        hidden_TK, hidden_TK.stride(0), y_TK, y_TK.stride(0),
        low_rank_arguments(low_rank), tiles.adapter_T,
        norm and norm.weight_K, norm and norm.epsilon,
        out_TK, None if out_TK is None else out_TK.stride(0),
        scratch.square_TS, scratch.square_TS.stride(0), scratch.arrived_T,
        WIDTH=width, BLOCK_K=block, BLOCK_ROW=row, PIECES=num_pieces,
        BLOCK_P=triton.next_power_of_2(num_pieces),
        num_warps=blocks.row_warps if low_rank is None else blocks.num_warps,
        **launch_options(hidden_TK.device, low_rank),
    )  # fmt: skip


@triton.jit
def _residual_norm(
    p_hidden: tl.tensor,
    hidden_stride: tl.tensor,
    p_y: tl.tensor,
    y_stride: tl.tensor,
    low_rank: tl.tuple,
    p_adapter: tl.tensor,
    p_weight: tl.tensor,
    epsilon: tl.tensor,
    p_out: tl.tensor,
    out_stride: tl.tensor,
    p_square: tl.tensor,
    square_stride: tl.tensor,
    p_arrived: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    dtype: tl.constexpr = p_hidden.dtype.element_ty
    token, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_K = piece * BLOCK_K + tl.arange(0, BLOCK_K)
    m_K = o_K < WIDTH
    if low_rank is not None:
        adapter = tl.load(p_adapter + token)
        known = prefetch_lora(low_rank, adapter, 0, o_K, m_K, p_y.dtype.element_ty)
    wait_for_predecessor(IS_DEPENDENT)
    p_row = p_hidden + token * hidden_stride
    before_K = tl.load(p_row + o_K, mask=m_K, other=0.0).to(tl.float32)
    y_K = tl.load(p_y + token * y_stride + o_K, mask=m_K, other=0.0).to(tl.float32)
    if low_rank is not None:
        o_T = tl.arange(0, 1)
        y_TK = changed_block(
            y_K[None, :], low_rank, known, adapter, 0, token + o_T, o_T == 0, o_K, m_K, 1
        )
        y_K = tl.sum(y_TK, 0)
    hidden_K = (before_K + y_K).to(dtype)
    tl.store(p_row + o_K, hidden_K, mask=m_K)
    if p_weight is not None:
        x_K = hidden_K.to(tl.float32)
        square = tl.sum(x_K * x_K, 0)
        if PIECES == 1:
            weight_K = tl.load(p_weight + o_K, mask=m_K, other=0.0)
            out_K = (x_K * tl.rsqrt(square / WIDTH + epsilon)).to(dtype) * weight_K
            tl.store(p_out + token * out_stride + o_K, out_K, mask=m_K)
        else:
            p_piece = p_square + token * square_stride
            tl.store(p_piece + piece, square)
            # All threads must have stored before one of them increments the counter.
            tl.debug_barrier()
            if tl.atomic_add(p_arrived + token, 1, sem="acq_rel", scope="gpu") == PIECES - 1:
                tl.store(p_arrived + token, 0)
                o_P = tl.arange(0, BLOCK_P)
                # Other programs' results are in L2: `.cg` bypasses L1.
                square_P = tl.load(
                    p_piece + o_P, mask=o_P < PIECES, other=0.0, cache_modifier=".cg"
                )
                factor = tl.rsqrt(tl.sum(square_P, 0) / WIDTH + epsilon)
                o_all = tl.arange(0, BLOCK_ROW)
                m_all = o_all < WIDTH
                weight = tl.load(p_weight + o_all, mask=m_all, other=0.0)
                row = tl.load(p_row + o_all, mask=m_all, other=0.0, cache_modifier=".cg")
                out = (row.to(tl.float32) * factor).to(dtype) * weight
                tl.store(p_out + token * out_stride + o_all, out, mask=m_all)
