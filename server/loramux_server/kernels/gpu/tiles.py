"""What kernels on a GPU need to know of a batch's adapters, in memory of the device.

An adapter's number is its first rank row divided by the granule, so that no table of slots has to
be kept: what is said of it here is written once, when it is loaded, and a step only says which
tokens it applies to.

Legend: I tiles, A adapters, G groups of layers, P parts of a group, T tokens, R slab rows, N output
width over all parts, S planes, J columns.
"""

from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.lora.row_allocator import GRANULE
from loramux_server.lora.segments import Int32, Segments

BASE = -1
"""The adapter of a tile that belongs to the base model alone."""


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
    size: int
    """Tokens that a kernel takes at a time: 16 or a larger power of two."""


@dataclass(frozen=True, slots=True)
class GroupTable:
    """What is known of all resident adapters in one group of layers."""

    size_A: torch.Tensor
    """Rank rows that each takes, int32."""
    rank_AP: torch.Tensor
    """True rank in each part, int32; 0 where the adapter does not change the layer."""
    scale_AP: torch.Tensor
    """Factor of each change, float32."""


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """What is known of all resident adapters."""

    size_A: torch.Tensor
    rank_GAP: torch.Tensor
    scale_GAP: torch.Tensor

    @staticmethod
    def empty(
        num_groups: int, num_rows: int, num_parts: int, device: torch.device
    ) -> "AdapterTable":
        """Return a table for the adapters of a slab of `num_rows` rank rows."""
        size = (num_groups, num_rows // GRANULE, num_parts)
        return AdapterTable(
            torch.zeros(size[1], dtype=torch.int32, device=device),
            torch.zeros(size, dtype=torch.int32, device=device),
            torch.zeros(size, dtype=torch.float32, device=device),
        )

    def group(self, group: int) -> GroupTable:
        """Return what concerns one group of layers."""
        return GroupTable(self.size_A, self.rank_GAP[group], self.scale_GAP[group])


@dataclass(frozen=True, slots=True)
class LowRank:
    """The half of a low-rank change that is left when A has been applied: what B makes of h.

    For a token of a tile whose adapter has size `size` and begins at row `row`, column j of part p
    of h is the sum over planes of

        planes[s, t, (P*row if is_merged else 0) + p*size + j]      for j < rank of the part
    """

    planes_STJ: torch.Tensor
    """Any strides but the last, which is 1."""
    is_merged: bool
    """Whether h has a column for every A row of the slab, as a matmul with all of them gives."""
    b_RN: torch.Tensor
    table: GroupTable


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
