"""The LoRA shrink (x·A) on a CPU, compiled: A rows are streamed once, straight from the slab.

The rows are split among the threads in long contiguous runs.
"""

from typing import Any

import numba

from loramux_server.kernels.cpu.dot_tile import INPUTS, ROWS, dots_for
from loramux_server.kernels.cpu.parallel import (
    FASTMATH,
    first_unit,
    float32_at,
    int32_at,
    share_of,
)
from loramux_server.kernels.cpu.simd import BFLOAT16, FLOAT16, FLOAT32
from loramux_server.wire.weight_format import WeightFormat

_FLOAT32, _BFLOAT16, _FLOAT16 = (int(number) for number in WeightFormat)
_dots_float32, _dots_bfloat16 = dots_for(FLOAT32), dots_for(BFLOAT16)
_dots_float16 = dots_for(FLOAT16)


def shrink(pointer: Any) -> None:
    """h[t, p, i] = scale * x[t] . A[i] for each rank row i of part p; split by rows."""
    job = numba.carray(pointer, 1)[0]
    scale, start, end = float32_at(job.scale), int32_at(job.start), int32_at(job.end)
    rank, row, size = int32_at(job.rank), int32_at(job.row), int32_at(job.size)
    form, num_parts, width = int32_at(job.format), job.num_parts, job.in_features
    all_work = 0
    for s in range(job.num_segments):
        for p in range(num_parts):
            quads = (rank[s * job.max_parts + p] + ROWS - 1) // ROWS
            all_work += quads * (end[s] - start[s])
    share_begin, share_end = share_of(all_work)
    work = 0
    for s in range(job.num_segments):
        tokens = end[s] - start[s]
        item_bytes = 4 if form[s] == _FLOAT32 else 2
        for p in range(num_parts):
            r = rank[s * job.max_parts + p]
            quads = (r + ROWS - 1) // ROWS
            q0 = first_unit(share_begin, work, tokens, quads)
            q1 = first_unit(share_end, work, tokens, quads)
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
