"""A layer's output added to the residual, which is then normalised for the next layer.

Legend: T tokens, K model width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels import pointwise
from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.gpu.arguments import low_rank_arguments, tile_arguments
from loramux_server.kernels.gpu.delta import delta, delta_block
from loramux_server.kernels.gpu.tiles import LowRank, Tiles, tokens


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the work is cut; powers of two."""

    rows: int = 4
    """Tokens of a program, which has whole rows: B is read once for these."""
    k: int = 256
    """Part of the width that is in flight at once, 16 or more."""
    num_warps: int = 4
    num_stages: int = 2


DEFAULT = Blocks()


def residual_norm(
    hidden_TK: torch.Tensor,
    y_TK: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    norm: Norm | None,
    out_TK: torch.Tensor | None,
) -> None:
    """Add `y_TK` and its low-rank change to `hidden_TK`, in place, and write its norm to `out_TK`.

    The sum is rounded once; what is normalised is the rounded sum. This concerns the tokens of
    `tiles`. Without a norm there is only the sum.
    """
    token_T = tokens(tiles)
    sum_TK = hidden_TK.float() + y_TK.float() + delta(low_rank, (0, y_TK.shape[1]), tiles, y_TK)
    hidden_TK[token_T] = sum_TK[token_T].to(hidden_TK.dtype)
    if norm is not None and out_TK is not None:
        out_TK[token_T] = pointwise.rms_norm(hidden_TK[token_T], norm.weight_K, norm.epsilon)


def residual_norm_triton(
    hidden_TK: torch.Tensor,
    y_TK: torch.Tensor,
    low_rank: LowRank | None,
    tiles: Tiles,
    norm: Norm | None,
    out_TK: torch.Tensor | None,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Do what `residual_norm` defines."""
    rows = min(blocks.rows, tiles.size)
    _residual_norm[(len(tiles.start_I), tiles.size // rows)](
        hidden_TK, hidden_TK.stride(0), y_TK, y_TK.stride(0),
        low_rank_arguments(low_rank), tile_arguments(tiles),
        norm and norm.weight_K, norm and norm.epsilon,
        out_TK, None if out_TK is None else out_TK.stride(0),
        WIDTH=hidden_TK.shape[1], ROWS=rows, BLOCK_T=max(16, rows), BLOCK_K=blocks.k,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip


@triton.jit
def _residual_norm(
    p_hidden: tl.tensor,
    hidden_stride: tl.tensor,
    p_y: tl.tensor,
    y_stride: tl.tensor,
    low_rank: tl.tuple,
    tiles: tl.tuple,
    p_weight: tl.tensor,
    epsilon: tl.tensor,
    p_out: tl.tensor,
    out_stride: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    i_tile = tl.program_id(0)
    first = tl.program_id(1) * ROWS
    count = tl.load(tiles.count_I + i_tile) - first
    if count <= 0:
        return
    dtype: tl.constexpr = p_hidden.dtype.element_ty
    o_T = tl.arange(0, BLOCK_T)
    # A matrix product takes 16 rows or more.
    m_T = (o_T < count) & (o_T < ROWS)
    token_T = (tl.load(tiles.start_I + i_tile) + first + o_T).to(tl.int64)
    adapter = tl.load(tiles.adapter_I + i_tile)
    p_T = p_hidden + token_T * hidden_stride
    square_T = tl.zeros((BLOCK_T,), tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        o_K = k + tl.arange(0, BLOCK_K)
        m_K = o_K < WIDTH
        m_TK = m_T[:, None] & m_K[None, :]
        p_TK = p_T[:, None] + o_K[None, :]
        sum_TK = tl.load(p_TK, mask=m_TK, other=0.0).to(tl.float32)
        p_y_TK = p_y + token_T[:, None] * y_stride + o_K[None, :]
        sum_TK += tl.load(p_y_TK, mask=m_TK, other=0.0).to(tl.float32)
        if low_rank is not None:
            sum_TK += delta_block(
                low_rank, adapter, 0, token_T, m_T, o_K, m_K,
                1, p_y.dtype.element_ty, BLOCK_T, BLOCK_K,
            )  # fmt: skip
        hidden_TK = sum_TK.to(dtype)
        tl.store(p_TK, hidden_TK, mask=m_TK)
        square_T += tl.sum(hidden_TK.to(tl.float32) * hidden_TK.to(tl.float32), 1)
    if p_weight is not None:
        # Another thread may read what this one has written.
        tl.debug_barrier()
        factor_T = tl.rsqrt(square_T / WIDTH + epsilon)
        for k in range(0, WIDTH, BLOCK_K):
            o_K = k + tl.arange(0, BLOCK_K)
            m_K = o_K < WIDTH
            m_TK = m_T[:, None] & m_K[None, :]
            x_TK = tl.load(p_T[:, None] + o_K[None, :], mask=m_TK, other=0.0).to(tl.float32)
            weight_K = tl.load(p_weight + o_K, mask=m_K, other=0.0)
            out_TK = (x_TK * factor_T[:, None]).to(dtype) * weight_K[None, :]
            tl.store(p_out + token_T[:, None] * out_stride + o_K[None, :], out_TK, mask=m_TK)
