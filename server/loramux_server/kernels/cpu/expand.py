"""The LoRA expand (h·B) on a CPU, compiled: B rows are read once, in place.

The outputs are split among the threads in long contiguous runs. For segments of several tokens,
rows and tokens are processed in register tiles.
"""

from typing import Any

import numba
import numpy as np

from loramux_server.kernels.cpu.parallel import (
    FASTMATH,
    first_unit,
    float32_at,
    int32_at,
    share_of,
)
from loramux_server.kernels.cpu.rank_rows import add_bfloat16, add_float16, add_float32
from loramux_server.kernels.cpu.register_tile import MAX_ROWS, PANEL, tile_for
from loramux_server.kernels.cpu.simd import BFLOAT16, FLOAT16, FLOAT32, WIDTH
from loramux_server.lora.affine import FACTOR, SHIFT
from loramux_server.wire.weight_format import WeightFormat

FEW = 4
"""Tokens of a segment up to which its B rows are streamed row by row, not by panels."""
_RUN = 32 * WIDTH
"""Outputs of such a segment that are processed together."""
_FLOAT32, _BFLOAT16, _FLOAT16 = (int(number) for number in WeightFormat)
_tile_float32, _tile_bfloat16 = tile_for(FLOAT32), tile_for(BFLOAT16)
_tile_float16 = tile_for(FLOAT16)


def expand(pointer: Any) -> None:
    """y[t, n] += sum of h[t, p, i] * B[i, n], then y[t, n] * factor[n] + shift[n].

    Panels of outputs are split among the threads, weighted by rank rows, vectors and tokens.
    """
    job = numba.carray(pointer, 1)[0]
    columns = int32_at(job.columns)
    start, end, rank = int32_at(job.start), int32_at(job.end), int32_at(job.rank)
    row, size, form = int32_at(job.row), int32_at(job.size), int32_at(job.format)
    num_parts, width = job.num_parts, job.out_features
    all_work = 0
    for s in range(job.num_segments):
        for p in range(num_parts):
            panels = (columns[p + 1] - columns[p] + PANEL - 1) // PANEL
            r = rank[s * job.max_parts + p] + _num_vectors(_kinds(job, s, p))
            all_work += panels * r * (end[s] - start[s])
    share_begin, share_end = share_of(all_work)
    work = 0
    for s in range(job.num_segments):
        tokens = end[s] - start[s]
        item_bytes = 4 if form[s] == _FLOAT32 else 2
        for p in range(num_parts):
            r, kinds = rank[s * job.max_parts + p], _kinds(job, s, p)
            cost = (r + _num_vectors(kinds)) * tokens
            if not cost:
                continue
            panels = (columns[p + 1] - columns[p] + PANEL - 1) // PANEL
            first = columns[p] + PANEL * first_unit(share_begin, work, cost, panels)
            last = columns[p] + PANEL * first_unit(share_end, work, cost, panels)
            # The last panel may be partial; a thread that starts past it has nothing to do.
            first, last = min(first, columns[p + 1]), min(last, columns[p + 1])
            work += panels * cost
            b = job.b + row[s] * width * 4
            h = job.h + (start[s] * num_parts + p) * job.max_rank * 4
            h_stride = num_parts * job.max_rank * 4
            y, b_n = job.y + (start[s] * width + first) * 4, b + first * item_bytes
            if r and tokens > job.few:
                _add_tiles(job, y, b_n, form[s], h, h_stride, r, tokens, last - first)
            elif r:
                for n in range(0, last - first, _RUN):
                    count = min(_RUN, last - first - n)
                    _add_rows(y + 4 * n, 4 * width, b_n + n * item_bytes, form[s], h, h_stride, r,
                              tokens, count)  # fmt: skip
            if kinds:
                factors = job.b + ((row[s] + size[s]) * width + first) * 4
                _apply(y, 4 * width, factors, factors + 4 * width, kinds, tokens, last - first)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _kinds(job: Any, segment: Any, part: Any) -> Any:
    """Return the FACTOR and SHIFT bits of a part's outputs."""
    if not job.affine:
        return 0
    return int32_at(job.affine)[segment * job.max_parts + part]


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _num_vectors(kinds: Any) -> Any:
    return (kinds & FACTOR) + (kinds & SHIFT) // SHIFT


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _apply(
    y: Any, stride: Any, factors: Any, shifts: Any, kinds: Any, tokens: Any, width: Any
) -> None:
    """Apply factors and shifts to a block of outputs, as flagged by `kinds`."""
    factor_N, shift_N = float32_at(factors), float32_at(shifts)
    for t in range(tokens):
        y_N = float32_at(y + t * stride)
        if kinds & FACTOR:
            for n in range(width):
                y_N[n] *= factor_N[n]
        if kinds & SHIFT:
            for n in range(width):
                y_N[n] += shift_N[n]


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _add_tiles(
    job: Any, y: Any, b: Any, form: Any, h: Any, h_stride: Any, rank: Any, tokens: Any, width: Any
) -> None:
    """Add outputs one tile of tokens at a time, so that few output rows are in use at once."""
    stride = 4 * job.out_features
    item_bytes = 4 if form == _FLOAT32 else 2
    b_stride = stride // 4 * item_bytes
    tiles = (tokens + MAX_ROWS - 1) // MAX_ROWS
    size = (tokens + tiles - 1) // tiles
    for t in range(0, tokens, size):
        rows, h_t = min(size, tokens - t), h + t * h_stride
        for n in range(0, width - PANEL + 1, PANEL):
            y_n, b_n = y + t * stride + 4 * n, b + n * item_bytes
            ahead = b_n + PANEL * item_bytes
            if form == _FLOAT32:
                _tile_float32(rows, h_t, h_stride, b_n, b_stride, rank, job.ones, job.zeros, y_n,
                              stride, 1, ahead, b_stride)  # fmt: skip
            elif form == _BFLOAT16:
                _tile_bfloat16(rows, h_t, h_stride, b_n, b_stride, rank, job.ones, job.zeros, y_n,
                               stride, 1, ahead, b_stride)  # fmt: skip
            else:
                _tile_float16(rows, h_t, h_stride, b_n, b_stride, rank, job.ones, job.zeros, y_n,
                              stride, 1, ahead, b_stride)  # fmt: skip
        n = width // PANEL * PANEL
        if n < width:
            _add_rows(y + t * stride + 4 * n, stride, b + n * item_bytes, form, h_t, h_stride, rank,
                      rows, width - n)  # fmt: skip


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _add_rows(
    y: Any,
    stride: Any,
    b: Any,
    form: Any,
    h: Any,
    h_stride: Any,
    rank: Any,
    tokens: Any,
    width: Any,
) -> None:
    """Add a block of outputs, four rank rows at a time, read as four streams."""
    item_bytes = 4 if form == _FLOAT32 else 2
    zero = np.float32(0.0)
    for i in range(0, rank, 4):
        b_i = b + i * (stride // 4) * item_bytes
        for t in range(tokens):
            h_t = float32_at(h + t * h_stride)
            h0, h1, h2, h3, step = h_t[i], zero, zero, zero, 0
            if i + 4 <= rank:
                h1, h2, h3 = h_t[i + 1], h_t[i + 2], h_t[i + 3]
                step = (stride // 4) * item_bytes
            # Memory past the last row is undefined: a remainder of fewer than four goes row by row.
            for j in range(i, i + 1 if step else rank):
                b_j = b_i + (j - i) * (stride // 4) * item_bytes
                h0 = h_t[j]
                if form == _FLOAT32:
                    add_float32(y + t * stride, b_j, step, h0, h1, h2, h3, width)
                elif form == _BFLOAT16:
                    add_bfloat16(y + t * stride, b_j, step, h0, h1, h2, h3, width)
                else:
                    add_float16(y + t * stride, b_j, step, h0, h1, h2, h3, width)
