"""The segmented low-rank matmul on a CPU, compiled: bytes are read once, in place.

The A and B rows of an adapter are streamed straight from the slab, and the threads share out the
work so that each reads long runs. In prefill, four rank rows stay close to the processor while the
tokens of a segment pass by, and then the outputs of four tokens while the rank rows pass.
"""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.parallel import (
    FASTMATH,
    Kernel,
    first_unit,
    float32_at,
    int32_at,
    share_of,
    thread_number,
)
from loramux_server.kernels.rank_rows_cpu import (
    BLOCK,
    add_bfloat16,
    add_float16,
    add_float32,
    dot_bfloat16,
    dot_float16,
    dot_float32,
    widen_bfloat16,
    widen_float16,
    widen_float32,
)
from loramux_server.kernels.simd import WIDTH, load, splat, store
from loramux_server.lora.segments import Int32, Segments
from loramux_server.lora.weight_format import WeightFormat

LORA_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "y", "x", "a", "b", "h", "columns", "start", "end", "row", "size", "format", "rank",
            "scale", "num_segments", "num_parts", "max_parts", "in_features", "out_features",
            "max_rank", "scratch",
        )
    ],
    align=True,
)  # fmt: skip
_LONG = 16
"""Tokens of a segment from which on it pays to keep its rank rows close."""
_ROW_BLOCK = 32 * WIDTH
"""Outputs done together in short segments; in long ones it is BLOCK."""
_FLOAT32, _BFLOAT16, _FLOAT16 = (int(number) for number in WeightFormat)


def shrink(pointer: Any) -> None:
    """h[t, p, i] = scale * x[t] . A[i] for each rank row i of part p, the rows shared out."""
    job = numba.carray(pointer, 1)[0]
    h, scale = float32_at(job.h), float32_at(job.scale)
    start, end, rank = int32_at(job.start), int32_at(job.end), int32_at(job.rank)
    row, size, form = int32_at(job.row), int32_at(job.size), int32_at(job.format)
    num_parts, width, max_rank = job.num_parts, job.in_features, job.max_rank
    all_work = 0
    for s in range(job.num_segments):
        for p in range(num_parts):
            all_work += (rank[s * job.max_parts + p] + 3) // 4 * (end[s] - start[s])
    mine, others = share_of(all_work)
    work = 0
    for s in range(job.num_segments):
        tokens = end[s] - start[s]
        item_bytes = 4 if form[s] == _FLOAT32 else 2
        for p in range(num_parts):
            r = rank[s * job.max_parts + p]
            quads = (r + 3) // 4
            q0 = first_unit(mine, work, tokens, quads)
            q1 = first_unit(others, work, tokens, quads)
            work += quads * tokens
            a = job.a + (num_parts * row[s] + p * size[s]) * width * 4
            factor = scale[s * job.max_parts + p]
            for i in range(4 * q0, min(r, 4 * q1), 4):
                # Past the last row there may be anything: look at the first of the four again.
                stride = width * item_bytes if i + 4 <= r else 0
                count = 4 if i + 4 <= r else 1
                for j in range(i, min(r, i + 4), count):
                    a_j = a + j * width * item_bytes
                    for t in range(start[s], end[s]):
                        x_t = job.x + t * width * 4
                        if form[s] == _FLOAT32:
                            h0, h1, h2, h3 = dot_float32(a_j, stride, x_t, width)
                        elif form[s] == _BFLOAT16:
                            h0, h1, h2, h3 = dot_bfloat16(a_j, stride, x_t, width)
                        else:
                            h0, h1, h2, h3 = dot_float16(a_j, stride, x_t, width)
                        at = (t * num_parts + p) * max_rank + j
                        h[at] = factor * h0
                        if count == 4:
                            h[at + 1] = factor * h1
                            h[at + 2] = factor * h2
                            h[at + 3] = factor * h3


def expand(pointer: Any) -> None:
    """y[t, n] += sum of h[t, p, i] * B[i, n], the outputs shared out by the rank behind them."""
    job = numba.carray(pointer, 1)[0]
    columns = int32_at(job.columns)
    start, end, rank = int32_at(job.start), int32_at(job.end), int32_at(job.rank)
    row, form = int32_at(job.row), int32_at(job.format)
    num_parts, width = job.num_parts, job.out_features
    all_work = 0
    for s in range(job.num_segments):
        for p in range(num_parts):
            lines = (columns[p + 1] - columns[p]) // WIDTH
            all_work += lines * rank[s * job.max_parts + p] * (end[s] - start[s])
    mine, others = share_of(all_work)
    work = 0
    for s in range(job.num_segments):
        tokens = end[s] - start[s]
        item_bytes = 4 if form[s] == _FLOAT32 else 2
        for p in range(num_parts):
            r = rank[s * job.max_parts + p]
            lines = (columns[p + 1] - columns[p]) // WIDTH
            first = columns[p] + WIDTH * first_unit(mine, work, r * tokens, lines)
            last = columns[p] + WIDTH * first_unit(others, work, r * tokens, lines)
            work += lines * r * tokens
            b = job.b + row[s] * width * 4
            block = _ROW_BLOCK if tokens < _LONG else BLOCK
            for n in range(first, last, block):
                count = min(block, last - n)
                b_n = b + n * item_bytes
                y = job.y + (start[s] * width + n) * 4
                h = job.h + (start[s] * num_parts + p) * job.max_rank * 4
                h_stride = num_parts * job.max_rank * 4
                if tokens < _LONG:
                    _add_rows(y, 4 * width, b_n, form[s], h, h_stride, r, tokens, count)
                else:
                    _add_tiles(job, y, b_n, form[s], h, h_stride, r, tokens, count)


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


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _add_tiles(
    job: Any, y: Any, b: Any, form: Any, h: Any, h_stride: Any, rank: Any, tokens: Any, width: Any
) -> None:
    """Add a block of outputs, four tokens at a time: the rank rows stay in the first cache."""
    stride = 4 * job.out_features
    rows = job.scratch + thread_number() * job.max_rank * BLOCK * 4
    if form == _FLOAT32:
        widen_float32(rows, b, stride, rank, width)
    elif form == _BFLOAT16:
        widen_bfloat16(rows, b, stride // 2, rank, width)
    else:
        widen_float16(rows, b, stride // 2, rank, width)
    for t in range(0, tokens, 4):
        # At the end, tokens that are not there are the last one again, and are not stored.
        h0 = float32_at(h + t * h_stride)
        h1 = float32_at(h + min(t + 1, tokens - 1) * h_stride)
        h2 = float32_at(h + min(t + 2, tokens - 1) * h_stride)
        h3 = float32_at(h + min(t + 3, tokens - 1) * h_stride)
        for n in range(0, width, WIDTH):
            y_n = y + t * stride + 4 * n
            s0 = s1 = s2 = s3 = splat(np.float32(0.0))
            for i in range(rank):
                b_i = load(rows + 4 * (i * BLOCK + n))
                s0 = s0 + splat(h0[i]) * b_i
                s1 = s1 + splat(h1[i]) * b_i
                s2 = s2 + splat(h2[i]) * b_i
                s3 = s3 + splat(h3[i]) * b_i
            store(y_n, load(y_n) + s0)
            if t + 1 < tokens:
                store(y_n + stride, load(y_n + stride) + s1)
            if t + 2 < tokens:
                store(y_n + 2 * stride, load(y_n + 2 * stride) + s2)
            if t + 3 < tokens:
                store(y_n + 3 * stride, load(y_n + 3 * stride) + s3)


class SegmentJobs:
    """What is the same for all groups of a step, and room for what passes between the loops."""

    def __init__(self, segments: Segments) -> None:
        rank_GSP, scale_GSP = segments.rank_GSP, segments.scale_GSP
        assert rank_GSP.flags.c_contiguous
        assert scale_GSP.flags.c_contiguous
        self.segments = segments
        self.max_rank = int(rank_GSP.max())
        self.dots_G: list[int] = (
            rank_GSP.sum(axis=2) @ (segments.end_S - segments.start_S)
        ).tolist()
        """Rank rows of each group, once for each token that they meet."""
        self._scratch = torch.empty(self.max_rank * BLOCK * torch.get_num_threads())

    def describe(self, job: Any, groups: Any) -> None:
        """Note in one or many `job`s what their `groups`, a number or an array, need to know."""
        segments = self.segments
        rank_GSP, scale_GSP = segments.rank_GSP, segments.scale_GSP
        job["rank"] = rank_GSP.ctypes.data + groups * rank_GSP.strides[0]
        job["scale"] = scale_GSP.ctypes.data + groups * scale_GSP.strides[0]
        job["start"], job["end"] = segments.start_S.ctypes.data, segments.end_S.ctypes.data
        job["row"], job["size"] = segments.row_S.ctypes.data, segments.size_S.ctypes.data
        job["format"], job["scratch"] = segments.format_S.ctypes.data, self._scratch.data_ptr()
        job["num_segments"], job["max_parts"] = rank_GSP.shape[1:]
        job["max_rank"] = self.max_rank


def serves(in_features: int, columns: Int32) -> bool:
    """Return whether the compiled loops take a group of this shape."""
    return not (in_features % WIDTH or (columns % WIDTH).any())


class AddLoraCpu:
    """`add_lora` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, LORA_JOB)
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
