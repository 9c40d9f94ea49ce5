"""The LoRA shrink (x·A): h of each token, from the A rows of its adapter.

Legend: T tokens, K input width, R slab rows, S planes (partial sums, each over a part of K), J rank
columns, A adapters, P parts of a group.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels.gpu.arguments import tile_arguments
from loramux_server.kernels.gpu.tiles import BASE, Tiles
from loramux_server.lora.adapter_table import GroupTable
from loramux_server.lora.row_allocator import GRANULE

ROWS = tl.constexpr(GRANULE)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration; powers of two, block sizes 16 or more."""

    columns: int = 16
    """Most rank columns per program."""
    k: int = 128
    """Inputs per block for 16-bit types; half as many for 32-bit."""
    num_warps: int = 4
    num_stages: int = 3


DEFAULT = Blocks()


def shrink(
    x_TK: torch.Tensor,
    a_RK: torch.Tensor,
    num_parts: int,
    tiles: Tiles,
    table: GroupTable,
    out_STJ: torch.Tensor,
) -> None:
    """Write h of each token that has an adapter to `out_STJ`, as planes whose sum is h.

    Semantics, for a tile with tokens t0:t1 whose adapter begins at row `row` and has size `size`,
    and part p of rank r:

        sum(out[:, t0:t1, p*size : p*size + r]) = x[t0:t1] @ a[P*row + p*size :][:r].T

    A is rounded to the type of x; sums are in float32. Other columns are not written.
    """
    for start, count, adapter in zip(
        tiles.start_I.tolist(), tiles.count_I.tolist(), tiles.adapter_I.tolist(), strict=True
    ):
        if not count or adapter == BASE:
            continue
        size = int(table.size_A[adapter])
        for part in range(num_parts):
            rank, column = int(table.rank_AP[adapter, part]), part * size
            first = num_parts * adapter * GRANULE + column
            a_JK = a_RK[first : first + rank].to(x_TK.dtype).float()
            out = out_STJ[:, start : start + count, column : column + rank]
            out[0] = x_TK[start : start + count].float() @ a_JK.T
            out[1:] = 0


def shrink_triton(
    x_TK: torch.Tensor,
    a_RK: torch.Tensor,
    num_parts: int,
    tiles: Tiles,
    table: GroupTable,
    out_STJ: torch.Tensor,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Implement `shrink`; plane s is the partial sum over the s-th part of the input width."""
    num_planes, _, num_columns = out_STJ.shape
    width = x_TK.shape[1]
    # The same number of bytes for every dtype: some GPUs have no shared memory for more.
    block_k = max(16, 2 * blocks.k // x_TK.itemsize)
    columns = max(16, min(blocks.columns, triton.next_power_of_2(num_columns)))
    grid = (len(tiles.start_I), triton.cdiv(num_columns, columns), num_planes)
    _shrink[grid](
        x_TK, x_TK.stride(0), a_RK, a_RK.stride(0), out_STJ, out_STJ.stride(0), out_STJ.stride(1),
        tile_arguments(tiles), table.size_A, table.rank_AP, table.rank_AP.stride(0),
        WIDTH=width, BLOCKS_PER_PLANE=triton.cdiv(triton.cdiv(width, block_k), num_planes),
        NUM_PARTS=num_parts, BLOCK_T=max(16, tiles.size), BLOCK_J=columns, BLOCK_K=block_k,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip


@triton.jit
def _shrink(
    p_x: tl.tensor,
    x_stride: tl.tensor,
    p_a: tl.tensor,
    a_stride: tl.tensor,
    p_out: tl.tensor,
    plane_stride: tl.tensor,
    out_stride: tl.tensor,
    tiles: tl.tuple,
    p_size: tl.tensor,
    p_rank: tl.tensor,
    adapter_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCKS_PER_PLANE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    i_tile, i_plane = tl.program_id(0), tl.program_id(2)
    count = tl.load(tiles.count_I + i_tile)
    adapter = tl.load(tiles.adapter_I + i_tile)
    if (count == 0) | (adapter < 0):
        return
    size = tl.load(p_size + adapter)
    o_J = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    part_J = o_J // size
    m_J = part_J < NUM_PARTS
    rank_J = tl.load(p_rank + adapter * adapter_stride + part_J, mask=m_J, other=0)
    m_J = m_J & (o_J - part_J * size < rank_J)
    if tl.max(m_J.to(tl.int32), 0) == 0:
        return
    o_T = tl.arange(0, BLOCK_T)
    m_T = o_T < count
    token_T = (tl.load(tiles.start_I + i_tile) + o_T).to(tl.int64)
    row_J = adapter.to(tl.int64) * (NUM_PARTS * ROWS) + o_J
    p_T = p_x + token_T * x_stride
    p_J = p_a + row_J * a_stride
    sum_TJ = tl.zeros((BLOCK_T, BLOCK_J), tl.float32)
    for i_block in range(BLOCKS_PER_PLANE):
        o_K = (i_plane * BLOCKS_PER_PLANE + i_block) * BLOCK_K + tl.arange(0, BLOCK_K)
        m_K = o_K < WIDTH
        x_TK = tl.load(p_T[:, None] + o_K[None, :], mask=m_T[:, None] & m_K[None, :], other=0.0)
        a_KJ = tl.load(p_J[None, :] + o_K[:, None], mask=m_J[None, :] & m_K[:, None], other=0.0)
        sum_TJ = tl.dot(x_TK, a_KJ.to(x_TK.dtype), sum_TJ, input_precision="ieee")
    p_TJ = (
        p_out + i_plane.to(tl.int64) * plane_stride + token_T[:, None] * out_stride + o_J[None, :]
    )
    tl.store(p_TJ, sum_TJ, mask=m_T[:, None] & m_J[None, :])
