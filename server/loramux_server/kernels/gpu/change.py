"""The second half of the LoRA update, as functions for the kernels that read a layer's output.

There is no separate kernel: each consumer adds h·B, and applies factors and shifts, while it has
the output in registers.

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
    """Return `y_TN` with LoRA applied, in float32; tokens without an adapter are unchanged.

    Semantics, for a tile with tokens t0:t1 whose adapter begins at row `row` and has size `size`,
    and part p of rank r and scale f, with output columns n0:n1:

        h = sum(planes[:, t0:t1, (P*row if is_merged else 0) + p*size :][:r])
        y[t0:t1, n0:n1] += h @ b[row : row + r, n0:n1] * f
        y[t0:t1, n0:n1] = y[t0:t1, n0:n1] * factors[n0:n1] + shifts[n0:n1]

    where factors, shifts = vectors(b, row + size), if the part has them. h and B are rounded to the
    type of y; sums are in float32.
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
def prefetch_lora(
    low_rank: tl.tuple,
    adapter: tl.tensor,
    part: tl.tensor,
    o_N: tl.tensor,
    m_N: tl.tensor,
    DTYPE: tl.constexpr,
) -> tl.tuple:
    """Load what does not depend on preceding kernels: size, rank, scale and first rows of B.

    These loads, for the columns `o_N`, overlap with the preceding kernel. The base has rank 0.
    """
    is_adapter = adapter >= 0
    o_part = adapter * low_rank.adapter_stride + part
    size = tl.load(low_rank.size_A + adapter, mask=is_adapter, other=0)
    rank = tl.load(low_rank.rank_AP + o_part, mask=is_adapter, other=0)
    scale = tl.load(low_rank.scale_AP + o_part, mask=is_adapter, other=0.0)
    return size, rank, scale, _rows(low_rank, adapter, 0, rank, o_N, m_N, DTYPE)


@triton.jit
def changed_block(
    y_TN: tl.tensor,
    low_rank: tl.tuple,
    known: tl.tuple,
    adapter: tl.tensor,
    part: tl.tensor,
    o_T: tl.tensor,
    m_T: tl.tensor,
    o_N: tl.tensor,
    m_N: tl.tensor,
    NUM_PARTS: tl.constexpr,
) -> tl.tensor:
    """Return `changed` of the tokens `o_T` (int64) and columns `o_N`, all of one part; float32.

    `known` is the result of `prefetch_lora` for them.
    """
    first_TN, _ = _changed(
        y_TN, y_TN, low_rank, known, known, adapter, part, part, o_T, m_T, o_N, o_N, m_N,
        NUM_PARTS, 1,
    )  # fmt: skip
    return first_TN


@triton.jit
def changed_pair(
    y_TN: tl.tensor,
    other_TN: tl.tensor,
    low_rank: tl.tuple,
    known: tl.tuple,
    other_known: tl.tuple,
    adapter: tl.tensor,
    part: tl.tensor,
    other_part: tl.tensor,
    o_T: tl.tensor,
    m_T: tl.tensor,
    o_N: tl.tensor,
    other_N: tl.tensor,
    m_N: tl.tensor,
    NUM_PARTS: tl.constexpr,
) -> tl.tuple:
    """Return `changed_block` of two blocks of equal width, with their loads overlapped."""
    return _changed(
        y_TN, other_TN, low_rank, known, other_known, adapter, part, other_part,
        o_T, m_T, o_N, other_N, m_N, NUM_PARTS, 2,
    )  # fmt: skip


@triton.jit
def _changed(
    a_TN: tl.tensor,
    b_TN: tl.tensor,
    low_rank: tl.tuple,
    a_known: tl.tuple,
    b_known: tl.tuple,
    adapter: tl.tensor,
    a_part: tl.tensor,
    b_part: tl.tensor,
    o_T: tl.tensor,
    m_T: tl.tensor,
    a_N: tl.tensor,
    b_N: tl.tensor,
    m_N: tl.tensor,
    NUM_PARTS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
) -> tl.tuple:
    """Return one or two blocks with LoRA applied; the second is unchanged if NUM_BLOCKS is 1."""
    DTYPE: tl.constexpr = a_known[3].dtype
    size, a_rank, a_scale, a_b_JN = a_known
    _, b_rank, b_scale, b_b_JN = b_known
    p_T = low_rank.planes_STJ + o_T * low_rank.token_stride
    if low_rank.is_merged:
        p_T += NUM_PARTS * adapter * ROWS
    # Issue all loads before the first use.
    a_h_TJ = _hidden(low_rank, p_T + a_part * size, m_T, 0, a_rank)
    if NUM_BLOCKS == 2:
        b_h_TJ = _hidden(low_rank, p_T + b_part * size, m_T, 0, b_rank)
        b_sum_TN = _product(b_h_TJ, b_b_JN, tl.zeros_like(b_TN))
    a_sum_TN = _product(a_h_TJ, a_b_JN, tl.zeros_like(a_TN))
    begin = 16
    while begin < tl.maximum(a_rank, b_rank):
        a_h_TJ = _hidden(low_rank, p_T + a_part * size, m_T, begin, a_rank)
        a_b_JN = _rows(low_rank, adapter, begin, a_rank, a_N, m_N, DTYPE)
        if NUM_BLOCKS == 2:
            b_h_TJ = _hidden(low_rank, p_T + b_part * size, m_T, begin, b_rank)
            b_b_JN = _rows(low_rank, adapter, begin, b_rank, b_N, m_N, DTYPE)
            b_sum_TN = _product(b_h_TJ, b_b_JN, b_sum_TN)
        a_sum_TN = _product(a_h_TJ, a_b_JN, a_sum_TN)
        begin += 16
    a_TN = _moved(a_TN + a_sum_TN * a_scale, low_rank, size, adapter, a_part, a_N, m_N)
    if NUM_BLOCKS == 2:
        b_TN = _moved(b_TN + b_sum_TN * b_scale, low_rank, size, adapter, b_part, b_N, m_N)
    return a_TN, b_TN


@triton.jit
def _hidden(
    low_rank: tl.tuple, p_T: tl.tensor, m_T: tl.tensor, begin: tl.tensor, rank: tl.tensor
) -> tl.tensor:
    """Return 16 columns of h, summed over planes; 0 beyond the rank, where memory is undefined."""
    o_J = begin + tl.arange(0, 16)
    p_TJ = p_T[:, None] + o_J[None, :]
    m_TJ = m_T[:, None] & (o_J < rank)[None, :]
    h_TJ = tl.load(p_TJ, mask=m_TJ, other=0.0).to(tl.float32)
    for _ in tl.static_range(1, low_rank.num_planes):
        p_TJ += low_rank.plane_stride
        h_TJ += tl.load(p_TJ, mask=m_TJ, other=0.0).to(tl.float32)
    return h_TJ


@triton.jit
def _rows(
    low_rank: tl.tuple,
    adapter: tl.tensor,
    begin: tl.tensor,
    rank: tl.tensor,
    o_N: tl.tensor,
    m_N: tl.tensor,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Return 16 rows of B, rounded to `DTYPE`; 0 beyond the rank, likewise."""
    o_J = begin + tl.arange(0, 16)
    row_J = adapter.to(tl.int64) * ROWS + o_J
    p_JN = low_rank.b_RN + row_J[:, None] * low_rank.row_stride + o_N[None, :]
    b_JN = tl.load(p_JN, mask=(o_J < rank)[:, None] & m_N[None, :], other=0.0)
    return b_JN.to(DTYPE)


@triton.jit
def _product(h_TJ: tl.tensor, b_JN: tl.tensor, sum_TN: tl.tensor) -> tl.tensor:
    """Return `sum_TN` plus the product of `h_TJ`, rounded to the dtype of B, and `b_JN`.

    Several tokens use `tl.dot`, which needs 16 rows or more; a single token uses a plain sum.
    """
    if h_TJ.shape[0] == 1:
        h_J = tl.sum(h_TJ, 0).to(b_JN.dtype).to(tl.float32)
        sum_TN += tl.sum(h_J[:, None] * b_JN.to(tl.float32), 0)[None, :]
    else:
        sum_TN = tl.dot(h_TJ.to(b_JN.dtype), b_JN, sum_TN, input_precision="ieee")
    return sum_TN


@triton.jit
def _moved(
    y_TN: tl.tensor,
    low_rank: tl.tuple,
    size: tl.tensor,
    adapter: tl.tensor,
    part: tl.tensor,
    o_N: tl.tensor,
    m_N: tl.tensor,
) -> tl.tensor:
    """Return the block times the part's factors plus its shifts, if it has them."""
    if low_rank.has_vectors:
        o_part = adapter * low_rank.adapter_stride + part
        kinds = tl.load(low_rank.affine_AP + o_part, mask=adapter >= 0, other=0)
        # Broadcast to all columns: Triton's interpreter does not broadcast booleans.
        kinds_N = kinds + tl.zeros_like(o_N)
        granule = (adapter + size // ROWS).to(tl.int64)
        p_N = low_rank.vectors + granule * low_rank.granule_stride + o_N
        factor_N = tl.load(p_N, mask=m_N & ((kinds_N & FACTOR) != 0), other=1.0)
        p_N += low_rank.vector_stride
        shift_N = tl.load(p_N, mask=m_N & ((kinds_N & SHIFT) != 0), other=0.0)
        y_TN = y_TN * factor_N[None, :] + shift_N[None, :]
    return y_TN
