"""The segmented low-rank matmul on a CPU, compiled: bytes are read once, in place.

The A and B rows of an adapter are streamed straight from the slab, and the threads share out the
work so that each reads long runs. Where a segment has several tokens, rows and tokens meet in tiles
whose sums stay in registers.
"""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.dot_tile import INPUTS, ROWS, dots_for
from loramux_server.kernels.parallel import (
    FASTMATH,
    Kernel,
    first_unit,
    float32_at,
    int32_at,
    share_of,
)
from loramux_server.kernels.rank_rows_cpu import add_bfloat16, add_float16, add_float32
from loramux_server.kernels.register_tile import MAX_ROWS, PANEL, tile_for
from loramux_server.kernels.simd import BFLOAT16, FLOAT16, FLOAT32, WIDTH
from loramux_server.lora.affine import FACTOR, SHIFT
from loramux_server.lora.segments import Int32, Segments
from loramux_server.lora.weight_format import WeightFormat

LORA_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "y", "x", "a", "b", "h", "columns", "start", "end", "row", "size", "format", "rank",
            "scale", "num_segments", "num_parts", "max_parts", "in_features", "out_features",
            "max_rank", "ones", "zeros", "few", "affine",
        )
    ],
    align=True,
)  # fmt: skip
FEW = 4
"""Tokens of a segment up to which its B rows are read as long streams, and not by panels."""
_RUN = 32 * WIDTH
"""Outputs of such a segment that are done together."""
_ONES, _ZEROS = torch.ones(PANEL), torch.zeros(PANEL)
_FLOAT32, _BFLOAT16, _FLOAT16 = (int(number) for number in WeightFormat)
_dots_float32, _dots_bfloat16 = dots_for(FLOAT32), dots_for(BFLOAT16)
_dots_float16 = dots_for(FLOAT16)
_tile_float32, _tile_bfloat16 = tile_for(FLOAT32), tile_for(BFLOAT16)
_tile_float16 = tile_for(FLOAT16)


def shrink(pointer: Any) -> None:
    """h[t, p, i] = scale * x[t] . A[i] for each rank row i of part p, the rows shared out."""
    job = numba.carray(pointer, 1)[0]
    scale, start, end = float32_at(job.scale), int32_at(job.start), int32_at(job.end)
    rank, row, size = int32_at(job.rank), int32_at(job.row), int32_at(job.size)
    form, num_parts, width = int32_at(job.format), job.num_parts, job.in_features
    all_work = 0
    for s in range(job.num_segments):
        for p in range(num_parts):
            quads = (rank[s * job.max_parts + p] + ROWS - 1) // ROWS
            all_work += quads * (end[s] - start[s])
    mine, others = share_of(all_work)
    work = 0
    for s in range(job.num_segments):
        tokens = end[s] - start[s]
        item_bytes = 4 if form[s] == _FLOAT32 else 2
        for p in range(num_parts):
            r = rank[s * job.max_parts + p]
            quads = (r + ROWS - 1) // ROWS
            q0 = first_unit(mine, work, tokens, quads)
            q1 = first_unit(others, work, tokens, quads)
            work += quads * tokens
            a = job.a + (num_parts * row[s] + p * size[s]) * width * 4
            factor = scale[s * job.max_parts + p]
            for i in range(ROWS * q0, min(r, ROWS * q1), ROWS):
                a_i = a + i * width * item_bytes
                for t in range(start[s], end[s], INPUTS):
                    h = job.h + ((t * num_parts + p) * job.max_rank + i) * 4
                    _dots(
                        form[s], min(ROWS, r - i), min(INPUTS, end[s] - t), a_i,
                        width * item_bytes, job.x + t * width * 4, width * 4, width, factor, h,
                        num_parts * job.max_rank * 4,
                    )  # fmt: skip


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _dots(
    form: Any, rows: Any, inputs: Any, w: Any, w_stride: Any, x: Any, x_stride: Any, depth: Any,
    scale: Any, out: Any, out_stride: Any,
) -> None:  # fmt: skip
    if form == _FLOAT32:
        _dots_float32(rows, inputs, w, w_stride, x, x_stride, depth, scale, out, out_stride)
    elif form == _BFLOAT16:
        _dots_bfloat16(rows, inputs, w, w_stride, x, x_stride, depth, scale, out, out_stride)
    else:
        _dots_float16(rows, inputs, w, w_stride, x, x_stride, depth, scale, out, out_stride)


def expand(pointer: Any) -> None:
    """y[t, n] += sum of h[t, p, i] * B[i, n], then y[t, n] * factor[n] + shift[n].

    The outputs are shared out by the rows behind them.
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
    mine, others = share_of(all_work)
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
            first = columns[p] + PANEL * first_unit(mine, work, cost, panels)
            last = columns[p] + PANEL * first_unit(others, work, cost, panels)
            # The last panel may be a part of one; who begins behind it has nothing to do.
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
    """Return what becomes of the outputs of a part."""
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
    """Multiply a block of outputs and add to it, as far as `kinds` says so."""
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
    """Add outputs a tile of tokens after the other, so that few rows of outputs are under way."""
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
    """Add a block of outputs, four rank rows at a time: the rows are read as four streams."""
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
            # Past the last row there may be anything: of fewer than four, each goes alone.
            for j in range(i, i + 1 if step else rank):
                b_j = b_i + (j - i) * (stride // 4) * item_bytes
                h0 = h_t[j]
                if form == _FLOAT32:
                    add_float32(y + t * stride, b_j, step, h0, h1, h2, h3, width)
                elif form == _BFLOAT16:
                    add_bfloat16(y + t * stride, b_j, step, h0, h1, h2, h3, width)
                else:
                    add_float16(y + t * stride, b_j, step, h0, h1, h2, h3, width)


class SegmentJobs:
    """What is the same for all groups of a step."""

    def __init__(self, segments: Segments) -> None:
        rank_GSP, scale_GSP = segments.rank_GSP, segments.scale_GSP
        assert rank_GSP.flags.c_contiguous
        assert scale_GSP.flags.c_contiguous
        self.segments = segments
        self.max_rank = int(rank_GSP.max())
        rows_GSP = rank_GSP
        if segments.affine_GSP is not None:
            assert segments.affine_GSP.flags.c_contiguous
            rows_GSP = rank_GSP + segments.affine_GSP
        self.dots_G: list[int] = (
            rows_GSP.sum(axis=2) @ (segments.end_S - segments.start_S)
        ).tolist()
        """Rows of each group, once for each token that they meet, about."""

    def describe(self, job: Any, groups: Any) -> None:
        """Note in one or many `job`s what their `groups`, a number or an array, need to know."""
        segments = self.segments
        rank_GSP, scale_GSP = segments.rank_GSP, segments.scale_GSP
        job["rank"] = rank_GSP.ctypes.data + groups * rank_GSP.strides[0]
        job["scale"] = scale_GSP.ctypes.data + groups * scale_GSP.strides[0]
        job["start"], job["end"] = segments.start_S.ctypes.data, segments.end_S.ctypes.data
        job["row"], job["size"] = segments.row_S.ctypes.data, segments.size_S.ctypes.data
        job["format"] = segments.format_S.ctypes.data
        affine_GSP = segments.affine_GSP
        job["affine"] = (
            0 if affine_GSP is None else affine_GSP.ctypes.data + groups * affine_GSP.strides[0]
        )
        job["ones"], job["zeros"] = _ONES.data_ptr(), _ZEROS.data_ptr()
        job["num_segments"], job["max_parts"] = rank_GSP.shape[1:]
        job["max_rank"] = self.max_rank


def serves(in_features: int, columns: Int32) -> bool:
    """Return whether the compiled loops take a group of this shape."""
    return not (in_features % WIDTH or (columns % WIDTH).any())


class AddLoraCpu:
    """`add_lora` for float32 on a CPU."""

    def __init__(self, few: int = FEW) -> None:
        """Compile the loops.

        Args:
            few: Tokens of a segment up to which its B rows are read as long streams. The two ways
                add up in another order: with 0 there is one, however many tokens there are.
        """
        self._job = np.zeros(1, LORA_JOB)
        self._job["few"] = few
        self._shrink = Kernel(shrink, self._job)
        self._expand = Kernel(expand, self._job)
        self._h = torch.empty(0)
        self._jobs: SegmentJobs | None = None

    def __call__(
        self,
        y_TN: torch.Tensor,
        x_TK: torch.Tensor,
        a_RK: torch.Tensor,
        b_RN: torch.Tensor,
        columns: Int32,
        segments: Segments,
        group: int,
    ) -> None:
        """Do what `loramux_server.kernels.add_lora.add_lora` defines."""
        is_served = y_TN.dtype == a_RK.dtype == torch.float32 and x_TK.is_contiguous()
        if not is_served or not serves(x_TK.shape[1], columns):
            add_lora(y_TN, x_TK, a_RK, b_RN, columns, segments, group)
            return
        if self._jobs is None or segments is not self._jobs.segments:
            self._jobs = SegmentJobs(segments)
        num_parts = len(columns) - 1
        needed = y_TN.shape[0] * num_parts * self._jobs.max_rank
        if self._h.numel() < needed:
            self._h = torch.empty(needed)
        job = self._job[0]
        self._jobs.describe(job, group)
        job["y"], job["x"], job["h"] = y_TN.data_ptr(), x_TK.data_ptr(), self._h.data_ptr()
        job["a"], job["b"] = a_RK.data_ptr(), b_RN.data_ptr()
        job["columns"], job["num_parts"] = columns.ctypes.data, num_parts
        job["in_features"], job["out_features"] = x_TK.shape[1], y_TN.shape[1]
        num_dots = self._jobs.dots_G[group]
        self._shrink.run(num_dots * x_TK.shape[1])
        self._expand.run(num_dots * y_TN.shape[1] // num_parts)
