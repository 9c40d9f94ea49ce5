"""Attention of one token per request on a CPU, compiled: keys and values are read in place."""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.cpu.attention import softmax
from loramux_server.kernels.cpu.dot_tile import INPUTS, ROWS, dots_for
from loramux_server.kernels.cpu.parallel import (
    FASTMATH,
    Kernel,
    first_unit,
    float32_at,
    int64_at,
    share_of,
    thread_number,
)
from loramux_server.kernels.cpu.register_tile import MAX_ROWS, ONES, PANEL, ZEROS, tile_for
from loramux_server.kernels.cpu.simd import FLOAT32, WIDTH
from loramux_server.kernels.row_attention import Context, row_attention

JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "q", "out", "scores", "scores_stride", "contexts", "requests", "heads", "key_heads",
            "key_width", "value_width", "q_stride", "q_head_stride", "ones", "zeros",
        )
    ]
    + [("scale", np.float64)],
    align=True,
)  # fmt: skip
_dots, _tile, _half_tile = dots_for(FLOAT32), tile_for(FLOAT32), tile_for(FLOAT32, vectors=1)
# Fields of a request's record: length in tokens, addresses and byte strides.
_LENGTH, _K, _K_HEAD, _K_TOKEN, _V, _V_HEAD, _V_TOKEN, _BIAS, _BIAS_HEAD, _BIAS_TOKEN = range(10)
_FIELDS = 10


def attend_rows(pointer: Any) -> None:
    """Implement `kernels.row_attention`; (request, key head) pairs are split by context length."""
    job = numba.carray(pointer, 1)[0]
    contexts = int64_at(job.contexts)
    scores = job.scores + thread_number() * job.scores_stride * 4
    all_work = 0
    for request in range(job.requests):
        all_work += contexts[_FIELDS * request + _LENGTH] * job.key_heads
    share_begin, share_end = share_of(all_work)
    work = 0
    for request in range(job.requests):
        length = contexts[_FIELDS * request + _LENGTH]
        j0 = first_unit(share_begin, work, length, job.key_heads)
        j1 = first_unit(share_end, work, length, job.key_heads)
        work += length * job.key_heads
        for j in range(j0, j1):
            _attend(job, job.contexts + 8 * _FIELDS * request, scores, request, length, j)


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _attend(job: Any, record: Any, scores: Any, request: Any, length: Any, j: Any) -> None:
    """Attend for the query heads of key head `j` of one request."""
    context = int64_at(record)
    groups, stride = job.heads // job.key_heads, 4 * length
    first = j * groups
    q = job.q + request * job.q_stride + first * job.q_head_stride
    k, k_token = context[_K] + j * context[_K_HEAD], context[_K_TOKEN]
    scale = np.float32(job.scale)
    for token in range(0, length, ROWS):
        for g in range(0, groups, INPUTS):
            _dots(
                min(ROWS, length - token), min(INPUTS, groups - g), k + token * k_token, k_token,
                q + g * job.q_head_stride, job.q_head_stride, job.key_width, scale,
                scores + g * stride + 4 * token, stride,
            )  # fmt: skip
    for g in range(groups):
        row = float32_at(scores + g * stride)
        if context[_BIAS] != 0:
            bias, step = context[_BIAS] + (first + g) * context[_BIAS_HEAD], context[_BIAS_TOKEN]
            for token in range(length):
                row[token] += float32_at(bias + token * step)[0]
        softmax(row, 0, length, length, np.float32(0.0), np.float32(-np.inf))
    v, v_token = context[_V] + j * context[_V_HEAD], context[_V_TOKEN]
    value_bytes = 4 * job.value_width
    for g in range(0, groups, MAX_ROWS):
        rows, weights = min(MAX_ROWS, groups - g), scores + g * stride
        y = job.out + (request * job.heads + first + g) * value_bytes
        for e in range(0, job.value_width, PANEL):
            v_e, y_e = v + 4 * e, y + 4 * e
            if e + PANEL <= job.value_width:
                _tile(rows, weights, stride, v_e, v_token, length, job.ones, job.zeros, y_e,
                      value_bytes, 0, v_e, v_token)  # fmt: skip
            else:
                _half_tile(rows, weights, stride, v_e, v_token, length, job.ones, job.zeros,
                           y_e, value_bytes, 0, v_e, v_token)  # fmt: skip


class RowAttentionCpu:
    """`row_attention` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, JOB)
        self._kernel = Kernel(attend_rows, self._job)
        self._scores = torch.empty(0)

    def __call__(
        self, q_BHD: torch.Tensor, contexts: Sequence[Context], scale: float
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.row_attention.row_attention`."""
        requests, heads, key_width = q_BHD.shape
        key_heads, _, value_width = contexts[0].v_JLE.shape
        if key_width % WIDTH or value_width % WIDTH or not _is_served(q_BHD, contexts):
            return row_attention(q_BHD, contexts, scale)
        records = np.array([_record(each) for each in contexts], np.int64)
        longest = int(records[:, _LENGTH].max())
        stride = -(-longest * heads // key_heads // WIDTH) * WIDTH
        needed = stride * torch.get_num_threads()
        if self._scores.numel() < needed:
            self._scores = torch.empty(2 * needed)
        out_BHE = q_BHD.new_empty(requests, heads, value_width)
        job = self._job[0]
        job["q"], job["out"], job["contexts"] = (
            q_BHD.data_ptr(),
            out_BHE.data_ptr(),
            records.ctypes.data,
        )
        job["q_stride"], job["q_head_stride"] = 4 * q_BHD.stride(0), 4 * q_BHD.stride(1)
        job["scores"], job["scores_stride"] = self._scores.data_ptr(), stride
        job["requests"], job["heads"], job["key_heads"] = requests, heads, key_heads
        job["key_width"], job["value_width"] = key_width, value_width
        job["ones"], job["zeros"] = ONES.data_ptr(), ZEROS.data_ptr()
        job["scale"] = scale
        self._kernel.run(int(records[:, _LENGTH].sum()) * heads * key_width)
        return out_BHE


def _is_served(q_BHD: torch.Tensor, contexts: Sequence[Context]) -> bool:
    numbers = [q_BHD, *(x for each in contexts for x in (each.k_JLD, each.v_JLE))]
    biases = (each.bias_HL for each in contexts)
    return all(x.dtype == torch.float32 and x.stride(-1) == 1 for x in numbers) and all(
        x is None or x.dtype == torch.float32 for x in biases
    )


def _record(context: Context) -> tuple[int, ...]:
    """Return the record of a request, in the order of the field constants."""
    k, v, bias = context
    (k_head, k_token, _), (v_head, v_token, _) = k.stride(), v.stride()
    of_bias = (0, 0, 0)
    if bias is not None:
        head, token = bias.expand(-1, k.shape[1]).stride()
        of_bias = bias.data_ptr(), 4 * head if len(bias) > 1 else 0, 4 * token
    return (
        k.shape[1], k.data_ptr(), 4 * k_head, 4 * k_token, v.data_ptr(), 4 * v_head, 4 * v_token,
        *of_bias,
    )  # fmt: skip
