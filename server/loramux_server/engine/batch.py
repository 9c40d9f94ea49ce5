"""A plan as flat arrays: what the model, attention and the adapters need to know of one step.

Requests that share an adapter lie next to each other, so that a segment is as long as it can be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loramux_server.engine.request import Request
from loramux_server.engine.scheduler import Chunk
from loramux_server.kernels.attention import AttentionBatch
from loramux_server.lora.segments import Int32, Residence, Segments


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input. T tokens; R rows that need logits."""

    token_T: torch.Tensor
    position_T: torch.Tensor
    attention: AttentionBatch
    segments: Segments | None
    """None when every token belongs to the base model alone."""
    sampled_R: torch.Tensor
    """Index of each token whose logits are needed."""
    requests: list[Request]
    """The requests of those tokens, in the same order."""

    @staticmethod
    def build(
        chunks: Sequence[Chunk],
        residence: Callable[[str], Residence],
        block_size: int,
        device: torch.device,
    ) -> "Batch":
        """Lay out `chunks`, already grouped by adapter (see `grouped`)."""
        lengths = [chunk.num_tokens for chunk in chunks]
        query_start = np.cumsum([0, *lengths], dtype=np.int32)
        token = np.empty(query_start[-1], np.int64)
        position = np.empty(query_start[-1], np.int64)
        table = np.zeros((len(chunks), max(len(c.request.blocks) for c in chunks)), np.int32)
        slot = np.empty(query_start[-1], np.int64)
        for i, chunk in enumerate(chunks):
            span = slice(query_start[i], query_start[i + 1])
            token[span] = chunk.request.tokens(chunk.start, chunk.end)
            at = np.arange(chunk.start, chunk.end)
            position[span] = at
            blocks = np.asarray(chunk.request.blocks, np.int32)
            table[i, : len(blocks)] = blocks
            slot[span] = blocks[at // block_size].astype(np.int64) * block_size + at % block_size
        sampled = [i for i, chunk in enumerate(chunks) if chunk.samples]
        return Batch(
            token_T=torch.from_numpy(token).to(device),
            position_T=torch.from_numpy(position).to(device),
            attention=AttentionBatch(
                query_start_B=query_start,
                context_B=np.array([chunk.end for chunk in chunks], np.int32),
                table_BM=table,
                block_size=block_size,
                slot_T=torch.from_numpy(slot).to(device),
            ),
            segments=_segments(chunks, query_start, residence),
            sampled_R=torch.from_numpy(query_start[1:][sampled].astype(np.int64) - 1).to(device),
            requests=[chunks[i].request for i in sampled],
        )


def grouped(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return `chunks` with those of one adapter next to each other, the base first."""
    return sorted(chunks, key=lambda chunk: chunk.request.digest or "")


def _segments(
    chunks: Sequence[Chunk], query_start: Int32, residence: Callable[[str], Residence]
) -> Segments | None:
    start: list[int] = []
    end: list[int] = []
    adapters: list[Residence] = []
    digest: str | None = None
    for i, chunk in enumerate(chunks):
        if chunk.request.digest is None:
            continue
        if chunk.request.digest != digest:
            digest = chunk.request.digest
            adapters.append(residence(digest))
            start.append(int(query_start[i]))
            end.append(0)
        end[-1] = int(query_start[i + 1])
    if not adapters:
        return None
    return Segments.build(start, end, adapters)
