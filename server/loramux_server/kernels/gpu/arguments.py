"""Tiles and low-rank changes as a kernel takes them: pointers, strides and constants.

Legend: as in `tiles`.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl

from loramux_server.kernels.gpu.tiles import LowRank, Tiles


class TileArguments(NamedTuple):
    """`Tiles` of a launch."""

    start_I: torch.Tensor
    count_I: torch.Tensor
    adapter_I: torch.Tensor


class LowRankArguments(NamedTuple):
    """`LowRank` of a launch."""

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
    """Constant when compiled, as is `is_merged`."""
    is_merged: Any


def tile_arguments(tiles: Tiles) -> TileArguments:
    """Return what a kernel takes of `tiles`; their size goes beside it, as a constant."""
    return TileArguments(tiles.start_I, tiles.count_I, tiles.adapter_I)


def low_rank_arguments(low_rank: LowRank | None) -> LowRankArguments | None:
    """Return what a kernel takes of `low_rank`; None compiles to no adapter code."""
    if low_rank is None:
        return None
    planes_STJ, table = low_rank.planes_STJ, low_rank.table
    return LowRankArguments(
        planes_STJ, planes_STJ.stride(0), planes_STJ.stride(1),
        low_rank.b_RN, low_rank.b_RN.stride(0),
        table.size_A, table.rank_AP, table.scale_AP, table.rank_AP.stride(0),
        tl.constexpr(len(planes_STJ)), tl.constexpr(low_rank.is_merged),
    )  # fmt: skip
