"""A plan as flat arrays: the input of one step for the model, attention and adapters.

Requests with the same adapter are adjacent, so that segments are as long as possible.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch

from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import draws_of
from loramux_server.engine.step_images import (
    image_embeddings,
    image_ranges,
    layer_additions,
    positions_of,
)
from loramux_server.engine.token_counts import SampledRow, adjustments_of
from loramux_server.kernels.adjust import Adjustments
from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.draw import Draws
from loramux_server.kernels.encoder_text import EncoderText
from loramux_server.kernels.states import KeptState, StateBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.head import states
from loramux_server.lora.segments import Int32, Residence, Segments
from loramux_server.lora.virtual import VirtualRun


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """Tokens of one request whose hidden states are read."""

    request: Request
    head: Callable[[torch.Tensor], torch.Tensor]
    """What reads them: [tokens, width] -> its output for each token."""
    first: int
    """How many of its tokens were read in earlier steps."""
    rows: slice
    """Rows of the tokens in the batch."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of one request's prompt whose log-probabilities are computed."""

    request: Request
    tokens: list[int]
    rows: slice
    """Row of the token before each of them in the batch."""
    is_last: bool
    """Whether they complete the prompt."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input, and the requests that it serves."""

    input: StepInput
    requests: list[Request]
    """The requests whose logits are needed, in the order of their rows: one row for each, and one
    more for each token of its draft."""
    drafts: Mapping[Request, Sequence[int]] = field(default_factory=dict)
    """The drafts of those that have one."""
    read: tuple[ReadTokens | PromptTokens, ...] = ()
    """Tokens whose hidden states are read, by heads or for prompt log-probabilities."""

    @property
    def num_rows(self) -> int:
        """Rows whose logits are needed."""
        return len(self.requests) + sum(map(len, self.drafts.values()))

    @staticmethod
    def build(
        chunks: Sequence[Chunk],
        residence: Callable[[str], Residence],
        block_size: int,
        before: "Batch | None" = None,
        *,
        draws: bool = False,
    ) -> "Batch":
        """Lay out `chunks`, already grouped by adapter (see `grouped`), in host memory.

        Args:
            chunks: What to compute.
            residence: Returns where an adapter is in memory.
            block_size: Tokens in a KV block.
            before: The step in flight, which yields the tokens of chunks that are ahead.
            draws: Whether the step samples its tokens itself.
        """
        lengths = [chunk.length for chunk in chunks]
        query_start = np.cumsum([0, *lengths], dtype=np.int32)
        token = np.fromiter(chain.from_iterable(chunk.tokens for chunk in chunks), np.int64)
        row = np.repeat(np.arange(len(chunks)), lengths)
        computed = np.array([chunk.start for chunk in chunks]) - query_start[:-1]
        position = np.arange(len(token)) + computed[row]
        table = np.zeros((len(chunks), max(len(c.request.blocks) for c in chunks)), np.int32)
        for i, chunk in enumerate(chunks):
            table[i, : len(chunk.request.blocks)] = chunk.request.blocks
        block, offset = np.divmod(position, block_size)
        slot = table[row, block].astype(np.int64) * block_size + offset
        embedded, cached = _virtual_runs(chunks, query_start, table, block_size, residence)
        position_T, position_3T = positions_of(chunks, position)
        ending = [chunk for chunk in chunks if chunk.samples]
        sampled = [
            place
            for end, chunk in zip(query_start[1:].tolist(), chunks, strict=True)
            if chunk.samples
            for place in range(end - len(chunk.draft) - 1, end)
        ]
        read: tuple[ReadTokens | PromptTokens, ...] = (
            *_read_tokens(chunks, query_start, residence),
            *_prompt_tokens(chunks, query_start),
        )
        return Batch(
            StepInput(
                token_T=torch.from_numpy(token),
                position_T=position_T,
                sampled_R=torch.tensor(sampled, dtype=torch.int64),
                attention=AttentionBatch(
                    query_start_B=query_start,
                    context_B=np.array([c.end + len(c.draft) for c in chunks], np.int32),
                    table_BM=table,
                    block_size=block_size,
                    slot_T=torch.from_numpy(slot),
                    bidirectional_T2=image_ranges(chunks),
                ),
                segments=_segments(chunks, query_start, residence),
                states=_states(chunks),
                texts=_encoder_texts(chunks, residence),
                position_3T=position_3T,
                embedded=(*embedded, *image_embeddings(chunks, query_start)),
                added=layer_additions(chunks, query_start),
                cached=cached,
                carried_T=_carried(chunks, before) if before else None,
                draws=_draws(ending) if draws else None,
                adjustments=_adjustments(ending) if draws else None,
                returns_logprobs=draws
                and any(chunk.request.sampling.num_logprobs is not None for chunk in ending),
                reads_hidden=bool(read),
            ),
            requests=[chunk.request for chunk in ending],
            drafts={chunk.request: chunk.draft for chunk in ending if chunk.draft},
            read=read,
        )


def grouped(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return `chunks` with those of one adapter adjacent, the base first.

    Within an adapter, chunks that begin with inactive tokens (aLoRA) come first, so that these do
    not separate the others.
    """
    return sorted(chunks, key=lambda chunk: (chunk.digest or "", not chunk.num_inactive))


def _carried(chunks: Sequence[Chunk], before: Batch) -> torch.Tensor:
    """Return the row of `before` that yields the one token of each of `chunks`."""
    row_of = {request: row for row, request in enumerate(before.requests)}
    return torch.tensor([row_of[chunk.request] for chunk in chunks])


def _draws(chunks: Sequence[Chunk]) -> Draws | None:
    """Return how the next tokens of `chunks` are sampled."""
    return draws_of([(chunk.request.sampling, chunk.position) for chunk in chunks])


def _adjustments(chunks: Sequence[Chunk]) -> Adjustments | None:
    """Return how their logits are adjusted before."""
    rows = [SampledRow(c.request.counts, c.position, c.request.output) for c in chunks]
    return adjustments_of(rows)


def _virtual_runs(
    chunks: Sequence[Chunk],
    query_start: Int32,
    table: Int32,
    block_size: int,
    residence: Callable[[str], Residence],
) -> tuple[tuple[VirtualRun, ...], tuple[VirtualRun, ...]]:
    """Return the virtual tokens that adapters provide as embeddings, and as keys and values."""
    embedded: list[VirtualRun] = []
    cached: list[VirtualRun] = []
    for i, chunk in enumerate(chunks):
        first = chunk.start - chunk.num_filled
        if first >= chunk.request.num_virtual:
            continue
        assert chunk.request.digest is not None
        virtual = residence(chunk.request.digest).virtual
        assert virtual is not None
        if chunk.num_filled:
            block, offset = np.divmod(np.arange(first, chunk.start), block_size)
            slot = table[i, block].astype(np.int64) * block_size + offset
            cached.append(VirtualRun(virtual, first, torch.from_numpy(slot)))
        else:
            count = min(chunk.end, chunk.request.num_virtual) - first
            rows = torch.arange(count) + int(query_start[i])
            embedded.append(VirtualRun(virtual, first, rows))
    return tuple(embedded), tuple(cached)


def _read_tokens(
    chunks: Sequence[Chunk], query_start: Int32, residence: Callable[[str], Residence]
) -> tuple[ReadTokens, ...]:
    """Return the tokens whose hidden states are read."""
    found: list[ReadTokens] = []
    for begin, chunk in zip(query_start.tolist(), chunks, strict=False):
        positions = chunk.read
        if not positions:
            continue
        head: Callable[[torch.Tensor], torch.Tensor] | None = states
        if chunk.request.pooling is None:
            assert chunk.digest is not None
            head = residence(chunk.digest).head
        assert head is not None
        row = begin + positions.start - chunk.start
        first = positions.start - chunk.request.num_unreported if chunk.request.reads_all else 0
        found.append(ReadTokens(chunk.request, head, first, slice(row, row + len(positions))))
    return tuple(found)


def _prompt_tokens(chunks: Sequence[Chunk], query_start: Int32) -> tuple[PromptTokens, ...]:
    """Return the prompt tokens whose log-probabilities are computed."""
    found: list[PromptTokens] = []
    for begin, chunk in zip(query_start.tolist(), chunks, strict=False):
        if not chunk.request.returns_prompt_logprobs:
            continue
        positions = chunk.prompt_logprob_positions
        if positions or chunk.ends_prompt:
            tokens = [chunk.request.prompt[position + 1] for position in positions]
            row = begin + positions.start - chunk.start
            rows = slice(row, row + len(tokens))
            found.append(PromptTokens(chunk.request, tokens, rows, chunk.ends_prompt))
    return tuple(found)


def _states(chunks: Sequence[Chunk]) -> StateBatch | None:
    uses = [chunk.state for chunk in chunks if chunk.state]
    if not uses:
        return None
    return StateBatch(
        read_B=np.array([use.read for use in uses], np.int64),
        write_B=np.array([use.write for use in uses], np.int64),
        kept=tuple(
            KeptState(number, position - chunk.start, slot)
            for number, chunk in enumerate(chunks)
            for position, slot in (chunk.state.kept if chunk.state else ())
        ),
    )


def _encoder_texts(
    chunks: Sequence[Chunk], residence: Callable[[str], Residence]
) -> tuple[EncoderText, ...]:
    """Return the texts of requests if the model has an encoder, which reads them as a whole."""
    if not chunks[0].request.in_one_chunk:  # the model is the same for all
        return ()
    texts = []
    for chunk in chunks:
        request, virtual = chunk.request, None
        if chunk.num_filled and request.digest:
            virtual = residence(request.digest).virtual
        owner = request.tenant, request.digest
        texts.append(
            EncoderText(
                request.second_from,
                request.num_source,
                chunk.start,
                owner,
                virtual,
                request.seq2seq_state,
            )
        )
    return tuple(texts)


def _segments(
    chunks: Sequence[Chunk], query_start: Int32, residence: Callable[[str], Residence]
) -> Segments | None:
    start: list[int] = []
    end: list[int] = []
    adapters: list[Residence] = []
    digest: str | None = None
    for i, chunk in enumerate(chunks):
        if chunk.digest is None:
            continue
        if chunk.request.num_virtual and not residence(chunk.digest).changes:
            continue
        begin = int(query_start[i]) + chunk.num_inactive
        if chunk.digest != digest or begin != end[-1]:
            digest = chunk.digest
            adapters.append(residence(digest))
            start.append(begin)
            end.append(begin)
        end[-1] = int(query_start[i + 1])
    if not adapters:
        return None
    return Segments.build(start, end, adapters)
