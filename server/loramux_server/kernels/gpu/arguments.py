"""Tiles and LoRA updates as kernel arguments: pointers, strides and constants.

Legend: as in `tiles`.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl

from loramux_server.kernels.gpu.tiles import LowRank, Tiles
from loramux_server.lora.row_allocator import GRANULE


class TileArguments(NamedTuple):
    """`Tiles` as kernel arguments."""

    start_I: torch.Tensor
    count_I: torch.Tensor
    adapter_I: torch.Tensor


class LowRankArguments(NamedTuple):
    """`LowRank` as kernel arguments."""

    planes_STJ: torch.Tensor
    plane_stride: int
    token_stride: int
    b_RN: torch.Tensor
    row_stride: int
    size_A: torch.Tensor
    rank_AP: torch.Tensor
    scale_AP: torch.Tensor
    adapter_stride: int
    num_planes: Any
    """A compile-time constant, like the next two."""
    is_merged: Any
    has_vectors: Any
    affine_AP: torch.Tensor
    """This and the rest are read only with vectors. Triton 3.6 accepts no None in a tuple."""
    vectors: torch.Tensor
    """The memory of `b_RN` as float32."""
    granule_stride: int
    vector_stride: int
    """Distance from a factor to its shift."""


def tile_arguments(tiles: Tiles) -> TileArguments:
    """Return `tiles` as kernel arguments; their size is passed separately, as a constant."""
    return TileArguments(tiles.start_I, tiles.count_I, tiles.adapter_I)


def low_rank_arguments(low_rank: LowRank | None) -> LowRankArguments | None:
    """Return `low_rank` as kernel arguments; None compiles to no adapter code."""
    if low_rank is None:
        return None
    planes_STJ, table, b_RN = low_rank.planes_STJ, low_rank.table, low_rank.b_RN
    vectors = (table.affine_AP, b_RN, 0, 0)
    if low_rank.has_vectors:
        memory, width = b_RN.view(-1).view(torch.float32), b_RN.shape[1]
        granule_bytes = GRANULE * width * b_RN.itemsize
        vectors = (table.affine_AP, memory, granule_bytes // memory.itemsize, width)
    return LowRankArguments(
        planes_STJ, planes_STJ.stride(0), planes_STJ.stride(1),
        b_RN, b_RN.stride(0),
        table.size_A, table.rank_AP, table.scale_AP, table.rank_AP.stride(0),
        tl.constexpr(len(planes_STJ)), tl.constexpr(low_rank.is_merged),
        tl.constexpr(low_rank.has_vectors), *vectors,
    )  # fmt: skip
