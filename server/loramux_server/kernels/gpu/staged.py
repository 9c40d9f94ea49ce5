"""A step as kernels on a GPU find it: what came with it, cut into tiles, in memory of the device.

Legend: M tokens that there is room for, I tiles, B requests, W blocks of a request.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch

from loramux_server.kernels.gpu.device_batch import DeviceBatch, cut_queries
from loramux_server.kernels.gpu.plan import Plan
from loramux_server.kernels.gpu.staging import Staging
from loramux_server.kernels.gpu.tiles import Tiles, cut
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Segments

SINGLE_TILE, SHARED_TILE, PREFILL_TILE = 1, 16, 64
"""Tokens of a tile: of decode, of decode where many requests have few adapters, and of prefill."""
_SHARED = 4
"""Requests of one tile, on average, that make tiles of several worth while."""
_ROOMS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Batches of decode are filled up to one of these, or to a multiple of the last."""
_FEWEST_ROWS = 128
"""Least A rows that a matmul goes on through; fewer would mean more forms of a step."""


@dataclass(frozen=True, slots=True)
class Path:
    """How h is made of x."""

    is_merged: bool
    """Whether the base matmul goes on through the A rows, from the first to `num_rows`."""
    num_rows: int
    """Else rank rows of the largest adapter, rounded up; never fewer than that."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The step that runs, on the device."""

    tiles: Tiles
    batch: DeviceBatch
    is_decode: bool
    """Whether every request has one token; then there may be more rows than tokens."""
    path: Path | None
    """None where no token has an adapter."""


class Stager:
    """Brings steps to one device, those of a form to the same addresses each time."""

    def __init__(self, device: torch.device, plan: Plan) -> None:
        self._device = device
        self._plan = plan
        self.query_tile = 8
        """Tokens of a tile of queries: at most 128 rows of 16 heads each."""
        self._decode: dict[tuple[int, int], Staging] = {}

    def stage(self, given: StepInput) -> tuple[StepInput, Staged]:
        """Return `given` with its tensors on the device, and what kernels need beside them."""
        num_tokens, attention = len(given.token_T), given.attention
        num_requests, num_blocks = attention.table_BM.shape
        is_decode = num_tokens == num_requests
        if is_decode:
            room, width = _room(num_tokens), _width(num_blocks)
            key = (room, width)
            if key not in self._decode:
                self._decode[key] = self._make(room, room, width, room, 0)
            staging = self._decode[key]
            tile_size, num_tiles = SHARED_TILE, room // _SHARED
            tiles = cut(given.segments, num_tokens, tile_size)
            if given.segments is None or len(tiles[0]) > num_tiles:
                tile_size, num_tiles = SINGLE_TILE, room
                tiles = cut(given.segments, num_tokens, tile_size)
        else:
            room, width, tile_size = num_tokens, num_blocks, PREFILL_TILE
            tiles = cut(given.segments, num_tokens, tile_size)
            num_tiles = len(tiles[0])
        queries = cut_queries(attention.query_start_B, self.query_tile, shortest=2)
        if not is_decode:
            staging = self._make(room, num_requests, width, num_tiles, len(queries[0]))
        here = staging.begin()
        for array in here.values():
            array[...] = 0
        here["token"][:num_tokens] = given.token_T.numpy()
        here["position"][:num_tokens] = given.position_T.numpy()
        here["slot"][:num_tokens] = attention.slot_T.numpy()
        here["slot"][num_tokens:] = -1
        here["sampled"][: len(given.sampled_R)] = given.sampled_R.numpy()
        if given.carried_T is not None:
            here["carried"][:num_tokens] = given.carried_T.numpy()
        here["context"][:num_requests] = attention.context_B
        here["query_start"][: num_requests + 1] = attention.query_start_B
        here["query_start"][num_requests + 1 :] = num_tokens
        here["table"][:num_requests, :num_blocks] = attention.table_BM
        for name, values in zip(("start", "count", "adapter"), tiles, strict=True):
            here[name][: len(values)] = values
        if not is_decode:
            here["query_request"][:], here["query_first"][:] = queries
        staging.send()
        there = staging.on_device
        path = self._path(given.segments, num_tokens)
        staged = Staged(
            tiles=Tiles(
                start_I=there["start"][:num_tiles],
                count_I=there["count"][:num_tiles],
                adapter_I=there["adapter"][:num_tiles],
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
        )
        is_edited = bool(given.embedded) or (
            given.segments is not None and given.segments.edits is not None
        )
        # What adapters do beside low-rank changes lies wherever it lies.
        form: Hashable = None
        if is_decode and not is_edited:
            form = (room, width, path, tile_size)
        num_sampled = room if is_decode else len(given.sampled_R)
        step = replace(
            given,
            token_T=there["token"],
            position_T=there["position"],
            sampled_R=there["sampled"][:num_sampled],
            attention=replace(attention, slot_T=there["slot"]),
            carried_T=None if given.carried_T is None else there["carried"][:num_tokens],
            form=form,
        )
        return step, staged

    def _make(
        self, num_tokens: int, num_requests: int, width: int, num_tiles: int, num_queries: int
    ) -> Staging:
        wide, narrow = torch.int64, torch.int32
        return Staging(
            {
                "token": (wide, (num_tokens,)),
                "position": (wide, (num_tokens,)),
                "slot": (wide, (num_tokens,)),
                "sampled": (wide, (num_tokens,)),
                "carried": (wide, (num_tokens,)),
                "context": (narrow, (num_requests,)),
                "query_start": (narrow, (num_requests + 1,)),
                "table": (narrow, (num_requests, width)),
                "start": (narrow, (num_tiles,)),
                "count": (narrow, (num_tiles,)),
                "adapter": (narrow, (num_tiles,)),
                "query_request": (narrow, (num_queries,)),
                "query_first": (narrow, (num_queries,)),
            },
            self._device,
        )

    def _path(self, segments: Segments | None, num_tokens: int) -> Path | None:
        if segments is None:
            return None
        num_rows = max(_FEWEST_ROWS, power(int((segments.row_S + segments.size_S).max())))
        used = int(segments.size_S[np.unique(segments.row_S, return_index=True)[1]].sum())
        is_small = num_tokens <= self._plan.max_merged_tokens
        if is_small and num_rows - used <= self._plan.max_spare_rows:
            return Path(is_merged=True, num_rows=num_rows)
        return Path(is_merged=False, num_rows=power(int(segments.size_S.max())))


def _room(num_tokens: int) -> int:
    largest = _ROOMS[-1]
    fitting = (room for room in _ROOMS if room >= num_tokens)
    return next(fitting, -(-num_tokens // largest) * largest)


def _width(num_blocks: int) -> int:
    """Return 64 or a power of four times it: few forms, whatever the contexts."""
    width = 64
    while width < num_blocks:
        width *= 4
    return width


def power(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
