"""Which adapter applies to which tokens of a batch, in GPU memory.

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
"""The adapter number of a tile without an adapter."""
SINGLE_TILE, SHARED_TILE, PREFILL_TILE = 1, 16, 64
"""Tokens of a tile: in decode, in decode where many requests share few adapters, in prefill."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Runs of consecutive tokens with one adapter, none longer than `size`; int32.

    Together they cover all tokens of the batch, including those without an adapter. Padding for
    CUDA graphs consists of tiles without tokens.
    """

    start_I: torch.Tensor
    """First token."""
    count_I: torch.Tensor
    """Number of tokens."""
    adapter_I: torch.Tensor
    """Number of the adapter, or `BASE`."""
    adapter_T: torch.Tensor
    """The same per token, including padding."""
    size: int
    """Most tokens of a tile: one, 16 or a larger power of two."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The rest of a LoRA update after A: h, B, and the output factors and shifts.

    For a token of a tile whose adapter has size `size` and begins at row `row`, column j of part p
    of h is the sum over planes of

        planes[s, t, (P*row if is_merged else 0) + p*size + j]      for j < rank of the part
    """

    planes_STJ: torch.Tensor
    """The last dimension must be contiguous."""
    is_merged: bool
    """Whether h has one column per A row of the slab, from the merged matmul."""
    b_RN: torch.Tensor
    """B rows, contiguous; an adapter's factors and shifts, if any, follow its rows."""
    table: GroupTable
    has_vectors: bool = False
    """Whether any adapter of the batch has factors or shifts."""


def make_tiles(segments: Segments | None, num_tokens: int, size: int) -> tuple[Int32, Int32, Int32]:
    """Return (start, count, adapter) of the tiles of `num_tokens` tokens; see `Tiles`."""
    # Runs alternate: tokens without an adapter (maybe none), then a segment; the last has none.
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
    """Return the indices of the tokens of `tiles`, int64."""
    within_IT = torch.arange(tiles.size, device=tiles.start_I.device)
    return (tiles.start_I[:, None] + within_IT)[within_IT < tiles.count_I[:, None]]
