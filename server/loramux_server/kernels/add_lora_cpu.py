"""The segmented low-rank matmul on a CPU, compiled: bytes are read once, in place.

Short segments, as in decode, stream the A and B rows of their adapter straight from the slab,
spread over all threads. Long ones, as in prefill, are ordinary matrix products on slices: the
definition.
"""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.parallel import (
    Kernel,
    float32_at,
    int32_at,
    num_threads,
    thread_number,
)
from loramux_server.lora.segments import Int32, Segments

SHORT = 12
"""Longest segment, in tokens, for which streaming beats a matrix product."""

_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "y", "x", "a", "b", "h", "columns", "start", "end", "row", "size", "rank",
            "num_segments", "num_parts", "in_features", "out_features", "h_stride",
        )
    ],
    align=True,
)  # fmt: skip


def _shrink(pointer: Any) -> None:  # noqa: ANN401
    """h[t, p*size + i] = x[t] . A[P*row + p*size + i], the rank rows shared out by work."""
    job = numba.carray(pointer, 1)[0]
    x, a, h = float32_at(job.x), float32_at(job.a), float32_at(job.h)
    start, end, row = int32_at(job.start), int32_at(job.end), int32_at(job.row)
    size, rank = int32_at(job.size), int32_at(job.rank)
    num_parts, width = job.num_parts, job.in_features
    total = 0
    for s in range(job.num_segments):
        for p in range(num_parts):
            total += rank[s * num_parts + p] * (end[s] - start[s])
    first = thread_number() * total // num_threads()
    last = (thread_number() + 1) * total // num_threads()
    work = 0
    for s in range(job.num_segments):
        tokens = end[s] - start[s]
        for p in range(num_parts):
            for i in range(rank[s * num_parts + p]):
                if first <= work < last:
                    a_row = (num_parts * row[s] + p * size[s] + i) * width
                    for t in range(start[s], end[s]):
                        x_row = t * width
                        total_f = np.float32(0.0)
                        for k in range(width):
                            total_f += a[a_row + k] * x[x_row + k]
                        h[t * job.h_stride + p * size[s] + i] = total_f
                work += tokens


def _expand(pointer: Any) -> None:  # noqa: ANN401
    """y[t, n] += sum of h[t, p*size + i] * B[row + i, n], the columns shared out evenly."""
    job = numba.carray(pointer, 1)[0]
    y, b, h = float32_at(job.y), float32_at(job.b), float32_at(job.h)
    start, end, row = int32_at(job.start), int32_at(job.end), int32_at(job.row)
    size, rank, columns = int32_at(job.size), int32_at(job.rank), int32_at(job.columns)
    num_parts, width = job.num_parts, job.out_features
    # Whole cache lines, so that no two threads write to the same one.
    lines = (width + 15) // 16
    first = thread_number() * lines // num_threads() * 16
    last = min(width, (thread_number() + 1) * lines // num_threads() * 16)
    for s in range(job.num_segments):
        for p in range(num_parts):
            low, high = max(first, columns[p]), min(last, columns[p + 1])
            r = rank[s * num_parts + p]
            if low >= high:
                continue
            for t in range(start[s], end[s]):
                h_row = t * job.h_stride + p * size[s]
                y_row = t * width
                i = 0
                # Four rank rows at a time: y is read and written a quarter as often.
                while i + 4 <= r:
                    h0, h1, h2, h3 = (
                        h[h_row + i],
                        h[h_row + i + 1],
                        h[h_row + i + 2],
                        h[h_row + i + 3],
                    )
                    b0 = (row[s] + i) * width
                    b1, b2, b3 = b0 + width, b0 + 2 * width, b0 + 3 * width
                    for n in range(low, high):
                        y[y_row + n] += (
                            h0 * b[b0 + n] + h1 * b[b1 + n] + h2 * b[b2 + n] + h3 * b[b3 + n]
                        )
                    i += 4
                while i < r:
                    h0 = h[h_row + i]
                    b0 = (row[s] + i) * width
                    for n in range(low, high):
                        y[y_row + n] += h0 * b[b0 + n]
                    i += 1


class AddLoraCpu:
    """`add_lora` for float32 on a CPU."""

    def __init__(self) -> None:
        self._shrink = Kernel(_shrink, _JOB)
        self._expand = Kernel(_expand, _JOB)
        self._h = torch.empty(0)
        self._job = np.zeros(1, _JOB)

    def __call__(
        self,
        y_TN: torch.Tensor,
        x_TK: torch.Tensor,
        a_RK: torch.Tensor,
        b_RN: torch.Tensor,
        columns_P: list[int],
        segments: Segments,
        rank_SP: Int32,
    ) -> None:
        """Do what `loramux_server.kernels.add_lora.add_lora` defines."""
        if y_TN.dtype != torch.float32 or a_RK.dtype != torch.float32:
            add_lora(y_TN, x_TK, a_RK, b_RN, columns_P, segments, rank_SP)
            return
        is_short = segments.end_S - segments.start_S <= SHORT
        if not is_short.all():
            add_lora(
                y_TN, x_TK, a_RK, b_RN, columns_P, _select(segments, ~is_short), rank_SP[~is_short]
            )
            if not is_short.any():
                return
            segments, rank_SP = _select(segments, is_short), rank_SP[is_short]
        self._stream(y_TN, x_TK, a_RK, b_RN, columns_P, segments, rank_SP)

    def _stream(
        self,
        y_TN: torch.Tensor,
        x_TK: torch.Tensor,
        a_RK: torch.Tensor,
        b_RN: torch.Tensor,
        columns_P: list[int],
        segments: Segments,
        rank_SP: Int32,
    ) -> None:
        h_stride = rank_SP.shape[1] * int(segments.size_S.max())
        if self._h.numel() < y_TN.shape[0] * h_stride:
            self._h = torch.empty(y_TN.shape[0] * h_stride)
        rank = np.ascontiguousarray(rank_SP)
        columns = np.array(columns_P, np.int32)
        x = x_TK.contiguous()
        job = self._job[0]
        job["y"], job["x"] = y_TN.data_ptr(), x.data_ptr()
        job["a"], job["b"], job["h"] = a_RK.data_ptr(), b_RN.data_ptr(), self._h.data_ptr()
        job["columns"], job["rank"] = columns.ctypes.data, rank.ctypes.data
        job["start"], job["end"] = segments.start_S.ctypes.data, segments.end_S.ctypes.data
        job["row"], job["size"] = segments.row_S.ctypes.data, segments.size_S.ctypes.data
        job["num_segments"], job["num_parts"] = rank.shape
        job["in_features"], job["out_features"] = a_RK.shape[1], b_RN.shape[1]
        job["h_stride"] = h_stride
        self._shrink.run(self._job)
        self._expand.run(self._job)


def _select(segments: Segments, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Segments:
    return Segments(
        segments.start_S[mask],
        segments.end_S[mask],
        segments.row_S[mask],
        segments.size_S[mask],
        segments.rank_GSP[:, mask],
    )
