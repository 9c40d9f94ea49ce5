"""Which adapter applies to which tokens of a batch, in memory of a GPU.

Legend: I tiles, P parts of a group of layers, T tokens, R slab rows, N output width over all parts,
S planes, J columns.
"""

from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.lora.adapter_table import GroupTable
from loramux_server.lora.row_allocator import GRANULE
from loramux_server.lora.segments import Int32, Segments

BASE = -1
"""The adapter of a tile that belongs to the base model alone."""
SINGLE_TILE, SHARED_TILE, PREFILL_TILE = 1, 16, 64
"""Tokens of a tile: of decode, of decode where many requests have few adapters, and of prefill."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Runs of neighbouring tokens with one adapter, none longer than `size`; int32.

    Together they are all tokens of the batch, those of the base model too. A tile of no tokens
    stands where a graph has room for more than the batch has.
    """

    start_I: torch.Tensor
    """First token."""
    count_I: torch.Tensor
    """Tokens."""
    adapter_I: torch.Tensor
    """Number of the adapter, or `BASE`."""
    adapter_T: torch.Tensor
    """The same of every token that there is room for."""
    size: int
    """Tokens that a kernel takes at a time: one, 16 or a larger power of two."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is left of adapters' changes when A has been applied: B, and what becomes of the sum.

    For a token of a tile whose adapter has size `size` and begins at row `row`, column j of part p
    of h is the sum over planes of

        planes[s, t, (P*row if is_merged else 0) + p*size + j]      for j < rank of the part
    """

    planes_STJ: torch.Tensor
    """Any strides but the last, which is 1."""
    is_merged: bool
    """Whether h has a column for every A row of the slab, as a matmul with all of them gives."""
    b_RN: torch.Tensor
    """Behind the rows of some adapters are their factors and shifts; contiguous."""
    table: GroupTable
    has_vectors: bool = False
    """Whether any adapter of the batch has such."""


def cut(segments: Segments | None, num_tokens: int, size: int) -> tuple[Int32, Int32, Int32]:
    """Return (start, count, adapter) of the tiles of `num_tokens` tokens, as in `Tiles`."""
    # The tokens of the base before each segment and after the last are runs as the segments are.
    border = np.array([0, num_tokens])
    if segments:
        border = np.insert(border, 1, np.stack([segments.start_S, segments.end_S], 1).reshape(-1))
    adapter = np.full(len(border) - 1, BASE, np.int32)
    if segments:
        adapter[1::2] = segments.row_S // GRANULE
    length = np.diff(border)
    tiles = -(-length // size)
    run = np.repeat(np.arange(len(length)), tiles)
    within = (np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * size
    count = np.minimum(length[run] - within, size)
    return (
        (border[run] + within).astype(np.int32),
        count.astype(np.int32),
        adapter[run],
    )


def tokens(tiles: Tiles) -> torch.Tensor:
    """Return the numbers of the tokens of `tiles`, int64."""
    within_IT = torch.arange(tiles.size, device=tiles.start_I.device)
    return (tiles.start_I[:, None] + within_IT)[within_IT < tiles.count_I[:, None]]
