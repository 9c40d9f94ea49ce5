"""Attention over a paged cache on a CPU, compiled: a decode token reads its context in place.

Chunks of a prompt use the definition, which is a few large matrix products for each request.
"""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.attention import (
    AttentionBatch,
    AttentionForm,
    attend_request,
    paged_attention,
)
from loramux_server.kernels.parallel import (
    Kernel,
    bits_as_float32,
    float32_at,
    int32_at,
    num_threads,
    thread_number,
)

_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "q", "k", "v", "out", "scores", "rows", "requests", "context", "table", "num_rows",
            "num_heads", "num_kv_heads", "key_width", "value_width", "block_size", "table_stride",
            "scores_stride", "window",
        )
    ]
    + [("scale", np.float64), ("softcap", np.float64)],
    align=True,
)  # fmt: skip


@numba.njit(inline="always", fastmath=True)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:  # noqa: ANN401
    """e**x for x <= 0, in float32 and without a call, so that loops over it become vector code."""
    x = max(x, np.float32(-87.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts: the product with the first is exact.
    r = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    tail = np.float32(1 / 120) + r * np.float32(1 / 720)
    tail = np.float32(1 / 6) + r * (np.float32(1 / 24) + r * tail)
    poly = np.float32(1) + r * (np.float32(1) + r * (np.float32(0.5) + r * tail))
    return poly * bits_as_float32((np.int32(whole) + np.int32(127)) << np.int32(23))


def _decode(pointer: Any) -> None:  # noqa: ANN401
    """Attend for each (row, key head); the pairs go round the threads."""
    job = numba.carray(pointer, 1)[0]
    q, k, v, out = float32_at(job.q), float32_at(job.k), float32_at(job.v), float32_at(job.out)
    rows, requests = int32_at(job.rows), int32_at(job.requests)
    context, table = int32_at(job.context), int32_at(job.table)
    scores = float32_at(job.scores + thread_number() * job.scores_stride * 4)
    kv_heads, block_size = job.num_kv_heads, job.block_size
    groups = job.num_heads // kv_heads
    key_width, value_width = job.key_width, job.value_width
    scale, softcap = np.float32(job.scale), np.float32(job.softcap)
    for pair in range(thread_number(), job.num_rows * kv_heads, num_threads()):
        row, head = pair // kv_heads, pair % kv_heads
        request = requests[row]
        length = context[request]
        first = max(0, length - job.window) if job.window > 0 else 0
        blocks = request * job.table_stride
        for g in range(groups):
            q_row = (rows[row] * job.num_heads + head * groups + g) * key_width
            o_row = (rows[row] * job.num_heads + head * groups + g) * value_width
            top = np.float32(-np.inf)
            for c in range(first, length):
                slot = table[blocks + c // block_size] * block_size + c % block_size
                k_row = (slot * kv_heads + head) * key_width
                score = np.float32(0.0)
                for d in range(key_width):
                    score += q[q_row + d] * k[k_row + d]
                score *= scale
                if softcap > 0:
                    score = softcap * np.tanh(score / softcap)
                scores[c - first] = score
                top = max(top, score)
            total = np.float32(0.0)
            for i in range(length - first):
                scores[i] = _exp(scores[i] - top)
                total += scores[i]
            for e in range(value_width):
                out[o_row + e] = 0.0
            for c in range(first, length):
                slot = table[blocks + c // block_size] * block_size + c % block_size
                v_row = (slot * kv_heads + head) * value_width
                weight = scores[c - first]
                for e in range(value_width):
                    out[o_row + e] += weight * v[v_row + e]
            for e in range(value_width):
                out[o_row + e] /= total


class PagedAttentionCpu:
    """`paged_attention` for float32 on a CPU."""

    def __init__(self) -> None:
        self._decode = Kernel(_decode, _JOB)
        self._scores = torch.empty(0)
        self._job = np.zeros(1, _JOB)

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Do what `loramux_server.kernels.attention.paged_attention` defines."""
        if q_THD.dtype != torch.float32:
            return paged_attention(q_THD, k_SJD, v_SJE, batch, form)
        q_THD = q_THD.contiguous()
        out_THE = q_THD.new_empty(q_THD.shape[0], q_THD.shape[1], v_SJE.shape[2])
        is_decode = np.diff(batch.query_start_B) == 1
        for request in np.flatnonzero(~is_decode).tolist():
            attend_request(out_THE, q_THD, k_SJD, v_SJE, batch, form, request)
        if is_decode.any():
            self._run(out_THE, q_THD, k_SJD, v_SJE, batch, form, np.flatnonzero(is_decode))
        return out_THE

    def _run(
        self,
        out_THE: torch.Tensor,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
        decode: np.ndarray[Any, np.dtype[np.intp]],
    ) -> None:
        requests = decode.astype(np.int32)
        rows = np.ascontiguousarray(batch.query_start_B[decode])
        longest = int(batch.context_B[decode].max())
        stride = -(-longest // 16) * 16
        if self._scores.numel() < stride * torch.get_num_threads():
            self._scores = torch.empty(2 * stride * torch.get_num_threads())
        job = self._job[0]
        job["q"], job["out"] = q_THD.data_ptr(), out_THE.data_ptr()
        job["k"], job["v"] = k_SJD.data_ptr(), v_SJE.data_ptr()
        job["scores"], job["scores_stride"] = self._scores.data_ptr(), stride
        job["rows"], job["requests"] = rows.ctypes.data, requests.ctypes.data
        job["context"], job["table"] = batch.context_B.ctypes.data, batch.table_BM.ctypes.data
        job["num_rows"], job["num_heads"] = len(rows), q_THD.shape[1]
        job["num_kv_heads"], job["key_width"], job["value_width"] = (
            k_SJD.shape[1],
            k_SJD.shape[2],
            v_SJE.shape[2],
        )
        job["block_size"], job["table_stride"] = batch.block_size, batch.table_BM.shape[1]
        job["window"], job["scale"], job["softcap"] = form.window, form.scale, form.softcap
        self._decode.run(self._job)
