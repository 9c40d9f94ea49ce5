"""A step's input on the GPU, cut into tiles."""

from collections.abc import Hashable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loramux_server.kernels.adjust import NUM_FACTORS, Adjustments
from loramux_server.kernels.draw import NUM_PARAMETERS
from loramux_server.kernels.gpu.capacity import StepCapacity, padded_decode_size, power
from loramux_server.kernels.gpu.device_batch import DeviceBatch, make_query_tiles
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.kernels.gpu.staging import Staging
from loramux_server.kernels.gpu.tiles import (
    BASE,
    PREFILL_TILE,
    SHARED_TILE,
    SINGLE_TILE,
    Tiles,
    make_tiles,
)
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Int32, Segments

_SHARED = 4
"""Average requests per tile from which tiles of several tokens are used in decode."""
_ENTRIES = ("adjust_row", "adjust_token", "adjust_bias", "adjust_seen", "adjust_count")
_ADJUSTMENTS = (*_ENTRIES, "adjust_factors", "adjust_lacks_one")
"""Staged arrays of the logit adjustments, in the order of the fields of `Adjustments`."""
_FEWEST_ROWS = 128
"""Least rank rows that the merged matmul covers; smaller steps would mean more graphs."""


@dataclass(frozen=True, slots=True)
class LoraPath:
    """How a step computes h and whether it applies vectors."""

    is_merged: bool
    """Whether the base matmul also computes h, for rank rows up to `num_rows`."""
    num_rows: int
    """If not merged: rank rows of the largest adapter, rounded up to a power of two."""
    has_vectors: bool
    """Whether any adapter has output factors or shifts."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The current step on the device."""

    tiles: Tiles
    batch: DeviceBatch
    is_decode: bool
    """Whether every request has exactly one token."""
    path: LoraPath | None
    """None where no token has an adapter."""
    uses_graph: bool
    """Whether its layers are replayed as a CUDA graph once captured, alone or with the rest."""


class Stager:
    """Copies steps to one device; steps with equal graph keys use the same addresses."""

    def __init__(self, device: torch.device, plan: Plan) -> None:
        self._device = device
        self._plan = plan
        self.query_tile = 8
        """Tokens of a query tile: by default 128 rows at 16 query heads per key head."""
        self._kept: dict[StepCapacity, Staging] = {}

    def stage(self, given: StepInput) -> tuple[StepInput, Staged]:
        """Return `given` with its tensors on the device, and the other inputs of kernels."""
        num_tokens, attention = len(given.token_T), given.attention
        num_requests, num_blocks = attention.table_BM.shape
        is_decode = num_tokens == num_requests
        tile_size, tiles = _tiles(given.segments, num_tokens, is_decode=is_decode)
        queries = make_query_tiles(attention.query_start_B, self.query_tile, shortest=2)
        segments = given.segments
        is_apart = bool(given.embedded) or (segments is not None and segments.needs_model_layers)
        has_edits = segments is not None and segments.edits is not None
        capacity = None
        # No graphs for recurrent layers (the model's own code, which may not be capturable), for
        # images (no two steps alike), or for whole texts (which synchronize with the host).
        shows = (
            given.position_3T is not None or given.added or attention.bidirectional_T2 is not None
        )
        is_own = given.states is not None or bool(given.texts)
        if not is_own and not shows and (is_decode or not is_apart):
            capacity = StepCapacity.padded(given, len(tiles[0]), len(queries[0]), self.query_tile)
        if capacity:
            if capacity not in self._kept:
                self._kept[capacity] = _make(capacity, self._device)
            staging = self._kept[capacity]
        else:
            exact = StepCapacity.of(given, len(tiles[0]), len(queries[0]))
            staging = _make(exact, self._device)
        here = staging.begin()
        for name, array in here.items():
            if name not in _ENTRIES:  # these are written in full, or not at all
                array[...] = 0
        here["token"][:num_tokens] = given.token_T.numpy()
        here["position"][:num_tokens] = given.position_T.numpy()
        here["slot"][:num_tokens] = attention.slot_T.numpy()
        here["slot"][num_tokens:] = -1
        here["sampled"][: len(given.sampled_R)] = given.sampled_R.numpy()
        if given.carried_T is not None:
            here["carried"][:num_tokens] = given.carried_T.numpy()
        if given.adjustments is not None:
            _stage_adjustments(given.adjustments, here)
        if given.draws is not None:
            here["draws"][: len(given.sampled_R)] = given.draws.rows_R5.numpy()
        here["context"][:num_requests] = attention.context_B
        here["query_start"][: num_requests + 1] = attention.query_start_B
        here["query_start"][num_requests + 1 :] = num_tokens
        here["table"][:num_requests, :num_blocks] = attention.table_BM
        for name, values in zip(("start", "count", "adapter"), tiles, strict=True):
            here[name][: len(values)] = values
        here["token_adapter"][:] = BASE
        here["token_adapter"][:num_tokens] = np.repeat(tiles[2], tiles[1])
        here["query_request"][:] = -1
        here["query_request"][: len(queries[0])], here["query_first"][: len(queries[1])] = queries
        staging.send()
        there = staging.on_device
        num_tiles = len(there["start"])
        if capacity and tile_size == SHARED_TILE:  # capacity.tiles allows for one tile per token
            num_tiles //= _SHARED
        path = self._path(given.segments, num_tokens)
        uses_graph = capacity is not None and not is_apart
        staged = Staged(
            tiles=Tiles(
                start_I=there["start"][:num_tiles],
                count_I=there["count"][:num_tiles],
                adapter_I=there["adapter"][:num_tiles],
                adapter_T=there["token_adapter"],
                size=tile_size,
            ),
            batch=DeviceBatch(
                query_start_B=there["query_start"],
                context_B=there["context"],
                table_BM=there["table"],
                slot_T=there["slot"],
                block_size=attention.block_size,
                tile_request_I=there["query_request"],
                tile_start_I=there["query_first"],
                tile_size=self.query_tile,
            ),
            is_decode=is_decode,
            path=path,
            uses_graph=uses_graph,
        )
        way = None if given.draws is None else given.draws.is_cut
        graph_key: Hashable = None
        layers_graph_key: Hashable = None
        if uses_graph and has_edits:  # tensors of edits have no fixed addresses
            layers_graph_key = (capacity, path, tile_size)
        elif uses_graph:
            graph_key = (capacity, path, tile_size, way, given.returns_logprobs)
        num_sampled = capacity.rows if capacity else len(given.sampled_R)
        draws_R5 = there["draws"][:num_sampled]
        adjustments = None
        if given.adjustments is not None:
            adjustments = Adjustments(
                row_E=there["adjust_row"],
                token_E=there["adjust_token"],
                bias_E=there["adjust_bias"],
                is_seen_E=there["adjust_seen"],
                count_E=there["adjust_count"],
                factors_R4=there["adjust_factors"][:num_sampled],
                lacks_one_R=there["adjust_lacks_one"][:num_sampled],
            )
        step = replace(
            given,
            token_T=there["token"],
            position_T=there["position"],
            position_3T=None if given.position_3T is None else given.position_3T.to(self._device),
            sampled_R=there["sampled"][:num_sampled],
            attention=replace(attention, slot_T=there["slot"]),
            carried_T=None if given.carried_T is None else there["carried"][:num_tokens],
            adjustments=adjustments,
            draws=None if given.draws is None else replace(given.draws, rows_R5=draws_R5),
            graph_key=graph_key,
            layers_graph_key=layers_graph_key,
        )
        return step, staged

    def _path(self, segments: Segments | None, num_tokens: int) -> LoraPath | None:
        if segments is None:
            return None
        num_rows = max(_FEWEST_ROWS, power(int((segments.row_S + segments.size_S).max())))
        used = int(segments.size_S[np.unique(segments.row_S, return_index=True)[1]].sum())
        has_vectors = segments.affine_GSP is not None
        is_small = num_tokens <= self._plan.max_merged_tokens
        if is_small and num_rows - used <= self._plan.max_spare_rows:
            return LoraPath(is_merged=True, num_rows=num_rows, has_vectors=has_vectors)
        num_rows = power(int(segments.size_S.max()))
        return LoraPath(is_merged=False, num_rows=num_rows, has_vectors=has_vectors)


def _tiles(
    segments: Segments | None, num_tokens: int, *, is_decode: bool
) -> tuple[int, tuple[Int32, Int32, Int32]]:
    """Return the tile size, and the tiles from `make_tiles`."""
    if not is_decode:
        return PREFILL_TILE, make_tiles(segments, num_tokens, PREFILL_TILE)
    if segments is not None:
        shared = make_tiles(segments, num_tokens, SHARED_TILE)
        if len(shared[0]) <= padded_decode_size(num_tokens) // _SHARED:
            return SHARED_TILE, shared
    return SINGLE_TILE, make_tiles(segments, num_tokens, SINGLE_TILE)


def _stage_adjustments(adjustments: Adjustments, here: dict[str, npt.NDArray[Any]]) -> None:
    for name, field in zip(_ADJUSTMENTS, fields(Adjustments), strict=True):
        values = getattr(adjustments, field.name).numpy()
        here[name][: len(values)] = values
        if name in _ENTRIES:  # pad with copies of the first entry: duplicates are harmless
            here[name][len(values) :] = values[0]


def _make(capacity: StepCapacity, device: torch.device) -> Staging:
    wide, narrow, floats = torch.int64, torch.int32, torch.float32
    return Staging(
        {
            **dict.fromkeys(_ENTRIES, (narrow, (capacity.num_adjustments,))),
            "adjust_bias": (floats, (capacity.num_adjustments,)),
            "adjust_factors": (floats, (capacity.rows, NUM_FACTORS)),
            "adjust_lacks_one": (narrow, (capacity.rows,)),
            "token": (wide, (capacity.tokens,)),
            "position": (wide, (capacity.tokens,)),
            "slot": (wide, (capacity.tokens,)),
            "sampled": (wide, (max(capacity.tokens, capacity.rows),)),
            "carried": (wide, (capacity.tokens,)),
            "draws": (torch.float64, (capacity.rows, NUM_PARAMETERS)),
            "context": (narrow, (capacity.requests,)),
            "query_start": (narrow, (capacity.requests + 1,)),
            "table": (narrow, (capacity.requests, capacity.width)),
            "start": (narrow, (capacity.tiles,)),
            "count": (narrow, (capacity.tiles,)),
            "adapter": (narrow, (capacity.tiles,)),
            "token_adapter": (narrow, (capacity.tokens,)),
            "query_request": (narrow, (capacity.queries,)),
            "query_first": (narrow, (capacity.queries,)),
        },
        device,
    )
