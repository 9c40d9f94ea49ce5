"""Where the requests' tokens are in batch and cache, in GPU memory.

Legend: B requests, M blocks in a table, T tokens of the batch, I query tiles.
"""

from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.lora.segments import Int32


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """An `AttentionBatch` as kernels read it; int32 unless stated otherwise.

    For CUDA graphs it may be padded beyond the batch's requests, tokens and tiles. Padding has
    context 0, slot -1 and request -1.
    """

    query_start_B: torch.Tensor
    """B + 1 offsets of the requests' tokens in the batch."""
    context_B: torch.Tensor
    """Context length of each request, including its tokens in this batch."""
    table_BM: torch.Tensor
    """Block table of each request: one block per `block_size` tokens."""
    slot_T: torch.Tensor
    """Cache slot of each token of the batch, int64."""
    block_size: int
    tile_request_I: torch.Tensor
    """Request of each query tile."""
    tile_start_I: torch.Tensor
    """First token of each tile in the batch."""
    tile_size: int
    """Most tokens of a tile; a tile ends where its request ends."""

    def part(self, request: int, start: int, end: int) -> AttentionBatch:
        """Return tokens `start` to `end` of the batch, all of `request`, as a separate batch."""
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
    """Return how many tokens fill `rows` rows: a token has one per query head of a key head."""
    return max(1, rows * num_kv_heads // num_heads)


def make_query_tiles(query_start_B: Int32, size: int, shortest: int = 1) -> tuple[Int32, Int32]:
    """Return (request, first token) of the query tiles of requests with `shortest` tokens or more.

    With `shortest` 2, the requests left out are those that `decode_attention` handles.
    """
    length_B = np.diff(query_start_B)
    request_T = np.repeat(np.arange(len(length_B), dtype=np.int32), length_B)
    within_T = np.arange(len(request_T)) - query_start_B[request_T]
    begins_T = (within_T % size == 0) & (length_B[request_T] >= shortest)
    start_I = np.flatnonzero(begins_T).astype(np.int32)
    return request_T[start_I], start_I
