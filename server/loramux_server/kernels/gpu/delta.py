"""What B makes of h: the low-rank change of a layer's output, for whoever reads that output.

No kernel of its own: each reader adds the change where it has the output in registers.

Legend: T tokens, N columns, J rank rows, S planes, A adapters, P parts, R slab rows.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from loramux_server.kernels.gpu.tiles import BASE, LowRank, Tiles
from loramux_server.lora.row_allocator import GRANULE

ROWS = tl.constexpr(GRANULE)


def delta(
    low_rank: LowRank | None, columns: Sequence[int], tiles: Tiles, y_TN: torch.Tensor
) -> torch.Tensor:
    """Return the change of `y_TN`, of its shape and in float32: zero for tokens of the base.

    Semantics, for a tile with tokens t0:t1 whose adapter begins at row `row` and has size `size`,
    and part p of rank r and scale f, with output columns n0:n1:

        h = sum(planes[:, t0:t1, (P*row if is_merged else 0) + p*size :][:r])
        delta[t0:t1, n0:n1] = h @ b[row : row + r, n0:n1] * f

    Factors of the product are rounded to the type of y; sums are in float32.
    """
    delta_TN = torch.zeros_like(y_TN, dtype=torch.float32)
    if low_rank is None:
        return delta_TN
    num_parts = len(columns) - 1
    for start, count, adapter in zip(
        tiles.start_I.tolist(), tiles.count_I.tolist(), tiles.adapter_I.tolist(), strict=True
    ):
        if not count or adapter == BASE:
            continue
        row, size = adapter * GRANULE, int(low_rank.table.size_A[adapter])
        for part in range(num_parts):
            rank = int(low_rank.table.rank_AP[adapter, part])
            first = (num_parts * row if low_rank.is_merged else 0) + part * size
            n0, n1 = columns[part], columns[part + 1]
            h_STJ = low_rank.planes_STJ[:, start : start + count, first : first + rank]
            h_TJ = h_STJ.float().sum(0).to(y_TN.dtype).float()
            b_JN = low_rank.b_RN[row : row + rank, n0:n1].to(y_TN.dtype).float()
            if rank:
                scale = low_rank.table.scale_AP[adapter, part]
                delta_TN[start : start + count, n0:n1] = h_TJ @ b_JN * scale
    return delta_TN


@triton.jit
def delta_block(
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
    """Return `delta` of the tokens `o_T` (int64) and columns `o_N`, all of one part.

    Several tokens take a matrix product, which has 16 rows or more; one token takes none.
    """
    is_adapter = adapter >= 0
    o_part = adapter * low_rank.adapter_stride + part
    rank = tl.load(low_rank.rank_AP + o_part, mask=is_adapter, other=0)
    scale = tl.load(low_rank.scale_AP + o_part, mask=is_adapter, other=0.0)
    first = part * tl.load(low_rank.size_A + adapter, mask=is_adapter, other=0)
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
