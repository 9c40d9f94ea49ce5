"""The LoRA expand (h·B) as a kernel of its own, for outputs that no fused kernel consumes.

Legend: T tokens, N output width over all parts of a group.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from loramux_server.kernels.gpu.arguments import low_rank_arguments, tile_arguments
from loramux_server.kernels.gpu.change import changed, changed_block, prefetch_lora
from loramux_server.kernels.gpu.dependent_launch import launch_options, wait_for_predecessor
from loramux_server.kernels.gpu.tiles import LowRank, Tiles


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launch configuration; powers of two, block sizes 16 or more."""

    n: int = 128
    """Columns per program."""
    num_warps: int = 4
    num_stages: int = 2


DEFAULT = Blocks()


def expand(
    y_TN: torch.Tensor, columns: Sequence[int], low_rank: LowRank | None, tiles: Tiles
) -> None:
    """Apply B, factors and shifts of the adapters to `y_TN`, in place.

    Args:
        y_TN: Output of the base layers.
        columns: P + 1 column offsets of the parts.
        low_rank: The rest of the LoRA update after A; None changes nothing.
        tiles: Which adapter applies to which tokens.
    """
    y_TN.copy_(changed(y_TN, low_rank, columns, tiles))


def expand_triton(
    y_TN: torch.Tensor,
    columns: Sequence[int],
    low_rank: LowRank | None,
    tiles: Tiles,
    *,
    blocks: Blocks = DEFAULT,
) -> None:
    """Implement `expand`."""
    if low_rank is None:
        return
    borders = tuple(map(int, columns))
    num_blocks = sum(triton.cdiv(n1 - n0, blocks.n) for n0, n1 in itertools.pairwise(borders))
    _expand[(len(tiles.start_I), num_blocks)](
        y_TN, y_TN.stride(0), low_rank_arguments(low_rank), tile_arguments(tiles),
        COLUMNS=borders, BLOCK_T=tiles.size, BLOCK_N=blocks.n,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        **launch_options(y_TN.device, low_rank),
    )  # fmt: skip


@triton.jit
def _expand(
    p_y: tl.tensor,
    y_stride: tl.tensor,
    low_rank: tl.tuple,
    tiles: tl.tuple,
    COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    i_tile, i_block = tl.program_id(0), tl.program_id(1)
    count = tl.load(tiles.count_I + i_tile)
    adapter = tl.load(tiles.adapter_I + i_tile)
    if (count == 0) | (adapter < 0):
        wait_for_predecessor(IS_DEPENDENT)
        return
    # Every part begins with a new block.
    NUM_PARTS: tl.constexpr = len(COLUMNS) - 1
    part = i_block * 0
    begin, end = part, part
    first = 0
    for p in tl.static_range(NUM_PARTS):
        is_reached = i_block >= first
        part = tl.where(is_reached, p, part)
        begin = tl.where(is_reached, COLUMNS[p] + (i_block - first) * BLOCK_N, begin)
        end = tl.where(is_reached, COLUMNS[p + 1], end)
        first += (COLUMNS[p + 1] - COLUMNS[p] + BLOCK_N - 1) // BLOCK_N
    o_N = begin + tl.arange(0, BLOCK_N)
    m_N = o_N < end
    dtype: tl.constexpr = p_y.dtype.element_ty
    known = prefetch_lora(low_rank, adapter, part, o_N, m_N, dtype)
    o_T = tl.arange(0, BLOCK_T)
    m_T = o_T < count
    token_T = (tl.load(tiles.start_I + i_tile) + o_T).to(tl.int64)
    wait_for_predecessor(IS_DEPENDENT)
    p_TN = p_y + token_T[:, None] * y_stride + o_N[None, :]
    m_TN = m_T[:, None] & m_N[None, :]
    y_TN = changed_block(
        tl.load(p_TN, mask=m_TN, other=0.0).to(tl.float32),
        low_rank, known, adapter, part, token_T, m_T, o_N, m_N, NUM_PARTS,
    )  # fmt: skip
    tl.store(p_TN, y_TN.to(dtype), mask=m_TN)
