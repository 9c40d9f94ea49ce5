"""What adapters make of a layer's output, for whoever reads that output.

No kernel of its own: each reader adds what B makes of h, and applies factors and shifts, where it
has the output in registers.

Legend: T tokens, N columns, J rank rows, S planes, A adapters, P parts, R slab rows.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from loramux_server.kernels.gpu.tiles import BASE, LowRank, Tiles
from loramux_server.lora.affine import FACTOR as _FACTOR
from loramux_server.lora.affine import SHIFT as _SHIFT
from loramux_server.lora.row_allocator import GRANULE
from loramux_server.lora.slab import affine_at

ROWS = tl.constexpr(GRANULE)
FACTOR, SHIFT = tl.constexpr(_FACTOR), tl.constexpr(_SHIFT)


def changed(
    y_TN: torch.Tensor, low_rank: LowRank | None, columns: Sequence[int], tiles: Tiles
) -> torch.Tensor:
    """Return `y_TN` as adapters change it, in float32; tokens of the base stay as they are.

    Semantics, for a tile with tokens t0:t1 whose adapter begins at row `row` and has size `size`,
    and part p of rank r and scale f, with output columns n0:n1:

        h = sum(planes[:, t0:t1, (P*row if is_merged else 0) + p*size :][:r])
        y[t0:t1, n0:n1] += h @ b[row : row + r, n0:n1] * f
        y[t0:t1, n0:n1] = y[t0:t1, n0:n1] * factors[n0:n1] + shifts[n0:n1]

    where factors, shifts = vectors(b, row + size), as far as the part has them. Factors of the
    product are rounded to the type of y; sums are in float32.
    """
    changed_TN = y_TN.float()
    if low_rank is None:
        return changed_TN
    changed_TN = changed_TN.clone()
    num_parts, table = len(columns) - 1, low_rank.table
    for start, count, adapter in zip(
        tiles.start_I.tolist(), tiles.count_I.tolist(), tiles.adapter_I.tolist(), strict=True
    ):
        if not count or adapter == BASE:
            continue
        row, size = adapter * GRANULE, int(table.size_A[adapter])
        for part in range(num_parts):
            rank = int(table.rank_AP[adapter, part])
            first = (num_parts * row if low_rank.is_merged else 0) + part * size
            n0, n1 = columns[part], columns[part + 1]
            y_CN = changed_TN[start : start + count, n0:n1]
            if rank:
                h_SCJ = low_rank.planes_STJ[:, start : start + count, first : first + rank]
                h_CJ = h_SCJ.float().sum(0).to(y_TN.dtype).float()
                b_JN = low_rank.b_RN[row : row + rank, n0:n1].to(y_TN.dtype).float()
                y_CN += h_CJ @ b_JN * table.scale_AP[adapter, part]
            if low_rank.has_vectors:
                kinds = int(table.affine_AP[adapter, part])
                y_CN.copy_(affine_at(low_rank.b_RN, row + size, kinds, n0, n1).of(y_CN))
    return changed_TN


@triton.jit
def changed_block(
    y_TN: tl.tensor,
    low_rank: tl.tuple,
    adapter: tl.tensor,
    part: tl.tensor,
    o_T: tl.tensor,
    m_T: tl.tensor,
    o_N: tl.tensor,
    m_N: tl.tensor,
    NUM_PARTS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Return `changed` of the tokens `o_T` (int64) and columns `o_N`, all of one part; float32."""
    is_adapter = adapter >= 0
    size = tl.load(low_rank.size_A + adapter, mask=is_adapter, other=0)
    y_TN += _delta_block(
        low_rank, adapter, is_adapter, size, part, o_T, m_T, o_N, m_N,
        NUM_PARTS, DTYPE, BLOCK_T, BLOCK_N,
    )  # fmt: skip
    if low_rank.has_vectors:
        o_part = adapter * low_rank.adapter_stride + part
        # One number for all columns, since Triton's interpreter spreads no truth values.
        kinds_N = tl.load(low_rank.affine_AP + o_part, mask=is_adapter, other=0) + tl.zeros_like(
            o_N
        )
        granule = (adapter + size // ROWS).to(tl.int64)
        p_N = low_rank.vectors + granule * low_rank.granule_stride + o_N
        factor_N = tl.load(p_N, mask=m_N & ((kinds_N & FACTOR) != 0), other=1.0)
        p_N += low_rank.vector_stride
        shift_N = tl.load(p_N, mask=m_N & ((kinds_N & SHIFT) != 0), other=0.0)
        y_TN = y_TN * factor_N[None, :] + shift_N[None, :]
    return y_TN


@triton.jit
def _delta_block(
    low_rank: tl.tuple,
    adapter: tl.tensor,
    is_adapter: tl.tensor,
    size: tl.tensor,
    part: tl.tensor,
    o_T: tl.tensor,
    m_T: tl.tensor,
    o_N: tl.tensor,
    m_N: tl.tensor,
    NUM_PARTS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Return what B makes of h.

    Several tokens take a matrix product, which has 16 rows or more; one token takes none.
    """
    o_part = adapter * low_rank.adapter_stride + part
    rank = tl.load(low_rank.rank_AP + o_part, mask=is_adapter, other=0)
    scale = tl.load(low_rank.scale_AP + o_part, mask=is_adapter, other=0.0)
    first = part * size
    if low_rank.is_merged:
        first += NUM_PARTS * adapter * ROWS
    p_T = low_rank.planes_STJ + o_T * low_rank.token_stride + first
    p_N = low_rank.b_RN + adapter.to(tl.int64) * ROWS * low_rank.row_stride + o_N
    sum_TN = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    begin = 0
    while begin < rank:
        o_J = begin + tl.arange(0, 16)
        # Exact: what lies beyond the rank was never written.
        m_J = o_J < rank
        p_TJ = p_T[:, None] + o_J[None, :]
        m_TJ = m_T[:, None] & m_J[None, :]
        h_TJ = tl.load(p_TJ, mask=m_TJ, other=0.0).to(tl.float32)
        for _ in tl.static_range(1, low_rank.num_planes):
            p_TJ += low_rank.plane_stride
            h_TJ += tl.load(p_TJ, mask=m_TJ, other=0.0).to(tl.float32)
        p_JN = p_N[None, :] + o_J.to(tl.int64)[:, None] * low_rank.row_stride
        b_JN = tl.load(p_JN, mask=m_J[:, None] & m_N[None, :], other=0.0).to(DTYPE)
        if BLOCK_T == 1:
            h_J = tl.sum(h_TJ, 0).to(DTYPE).to(tl.float32)
            sum_TN += tl.sum(h_J[:, None] * b_JN.to(tl.float32), 0)[None, :]
        else:
            sum_TN = tl.dot(h_TJ.to(DTYPE), b_JN, sum_TN, input_precision="ieee")
        begin += 16
    return sum_TN * scale
