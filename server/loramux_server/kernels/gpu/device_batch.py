"""Where the requests of a batch lie, in memory of a GPU.

Legend: B requests, M blocks in a table, T tokens of the batch, I query tiles.
"""

from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.lora.segments import Int32


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """An `AttentionBatch` as kernels read it; int32 where nothing else is said.

    A graph may have room for more requests, tokens and tiles than the batch has. What stands there
    is marked: a context of 0, slot -1, request -1.
    """

    query_start_B: torch.Tensor
    """B + 1 borders between the requests' tokens in the batch."""
    context_B: torch.Tensor
    """Tokens of each request in the cache, those of this batch included."""
    table_BM: torch.Tensor
    """The block of every `block_size` tokens of each request."""
    slot_T: torch.Tensor
    """Cache slot of each token of the batch, int64."""
    block_size: int
    tile_request_I: torch.Tensor
    """Whose query tokens each tile has."""
    tile_start_I: torch.Tensor
    """First token of each tile in the batch."""
    tile_size: int
    """Most tokens of a tile, which ends with its request."""

    def part(self, request: int, start: int, end: int) -> AttentionBatch:
        """Return tokens `start` to `end` of the batch, all of `request`, as their own batch."""
        behind = int(self.query_start_B[request + 1]) - end
        context = int(self.context_B[request]) - behind
        return AttentionBatch(
            query_start_B=np.array([0, end - start], np.int32),
            context_B=np.array([context], np.int32),
            table_BM=self.table_BM[request : request + 1].cpu().numpy(),
            block_size=self.block_size,
            slot_T=self.slot_T[start:end],
        )


def tile_size(num_heads: int, num_kv_heads: int, rows: int = 64) -> int:
    """Return how many tokens fill `rows` rows, where a token has one for each query head."""
    return max(1, rows * num_kv_heads // num_heads)


def cut_queries(query_start_B: Int32, size: int, shortest: int = 1) -> tuple[Int32, Int32]:
    """Return (request, first token) of the tiles of all requests of `shortest` tokens or more.

    With `shortest` 2, what is left out is what `decode_attention` takes.
    """
    length_B = np.diff(query_start_B)
    request_T = np.repeat(np.arange(len(length_B), dtype=np.int32), length_B)
    within_T = np.arange(len(request_T)) - query_start_B[request_T]
    begins_T = (within_T % size == 0) & (length_B[request_T] >= shortest)
    start_I = np.flatnonzero(begins_T).astype(np.int32)
    return request_T[start_I], start_I
