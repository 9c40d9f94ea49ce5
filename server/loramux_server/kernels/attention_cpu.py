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
    write_cache,
)
from loramux_server.kernels.parallel import (
    FASTMATH,
    Kernel,
    bits_as_float32,
    first_unit,
    float32_at,
    int32_at,
    int64_at,
    share_of,
    thread_number,
)
from loramux_server.kernels.simd import WIDTH, load, prefetch, splat, store, total

DECODE_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "q", "k", "v", "out", "scores", "rows", "requests", "context", "table", "num_rows",
            "num_heads", "num_kv_heads", "key_width", "value_width", "block_size", "table_stride",
            "scores_stride", "window", "q_stride", "q_head_stride",
        )
    ]
    + [("scale", np.float64), ("softcap", np.float64)],
    align=True,
)  # fmt: skip
WRITE_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "cache", "x", "slots", "num_tokens", "num_heads", "width", "stride", "head_stride",
        )
    ],
    align=True,
)  # fmt: skip


@numba.njit(inline="always", fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """e**x for x <= 0, in float32 and without a call, so that loops over it become vector code."""
    x = max(x, np.float32(-87.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts: the product with the first is exact.
    r = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    tail = np.float32(1 / 120) + r * np.float32(1 / 720)
    tail = np.float32(1 / 6) + r * (np.float32(1 / 24) + r * tail)
    poly = np.float32(1) + r * (np.float32(1) + r * (np.float32(0.5) + r * tail))
    return poly * bits_as_float32((np.int32(whole) + np.int32(127)) << np.int32(23))


def decode(pointer: Any) -> None:
    """Attend for rows of one token each, shared out by the length of their contexts.

    A thread takes all its heads of a row together: keys and values of a token lie side by side, so
    it reads them as one stream.
    """
    job = numba.carray(pointer, 1)[0]
    rows, requests = int32_at(job.rows), int32_at(job.requests)
    context, table = int32_at(job.context), int32_at(job.table)
    scores = float32_at(job.scores + thread_number() * job.scores_stride * 4)
    kv_heads, block_size = job.num_kv_heads, job.block_size
    groups = job.num_heads // kv_heads
    key_bytes, value_bytes = job.key_width * 4, job.value_width * 4
    scale, softcap = np.float32(job.scale), np.float32(job.softcap)
    all_work = 0
    for row in range(job.num_rows):
        all_work += context[requests[row]] * kv_heads
    mine, others = share_of(all_work)
    work = 0
    for row in range(job.num_rows):
        length = context[requests[row]]
        j0 = first_unit(mine, work, length, kv_heads)
        j1 = first_unit(others, work, length, kv_heads)
        work += length * kv_heads
        if j0 >= j1:
            continue
        first = max(0, length - job.window) if job.window > 0 else 0
        stride = length - first
        blocks = requests[row] * job.table_stride
        q = job.q + rows[row] * job.q_stride
        out = job.out + rows[row] * job.num_heads * value_bytes
        final = (length - 1) // block_size
        # The score of head g and token c is at (g - j0 * groups) * stride + c - first.
        for block in range(first // block_size, (length + block_size - 1) // block_size):
            slot = (table[blocks + block] - block) * block_size
            ahead = (table[blocks + min(block + 1, final)] - block) * block_size
            for c in range(max(first, block * block_size), min(length, (block + 1) * block_size)):
                for line in range(j0 * key_bytes, j1 * key_bytes, 64):
                    prefetch(job.k + (ahead + c) * kv_heads * key_bytes + line)
                for j in range(j0, j1):
                    k = job.k + ((slot + c) * kv_heads + j) * key_bytes
                    for g in range(j * groups, (j + 1) * groups):
                        q_g = q + g * job.q_head_stride
                        product = load(q_g) * load(k)
                        for d in range(64, key_bytes, 64):
                            product = product + load(q_g + d) * load(k + d)
                        scores[(g - j0 * groups) * stride + c - first] = total(product) * scale
        for g in range((j1 - j0) * groups):
            _softmax(scores, g * stride, stride, softcap)
        for g in range(j0 * groups, j1 * groups):
            for e in range(0, value_bytes, 64):
                store(out + g * value_bytes + e, splat(np.float32(0.0)))
        for block in range(first // block_size, (length + block_size - 1) // block_size):
            slot = (table[blocks + block] - block) * block_size
            c = max(first, block * block_size)
            last = min(length, (block + 1) * block_size)
            ahead = (table[blocks + min(block + 1, final)] - block) * block_size
            # Four tokens at a time: the output is read and written a quarter as often.
            while c + 4 <= last:
                for token in range(ahead + c, ahead + c + 4):
                    for line in range(j0 * value_bytes, j1 * value_bytes, 64):
                        prefetch(job.v + token * kv_heads * value_bytes + line)
                for j in range(j0, j1):
                    v0 = job.v + ((slot + c) * kv_heads + j) * value_bytes
                    v1 = v0 + kv_heads * value_bytes
                    v2 = v1 + kv_heads * value_bytes
                    v3 = v2 + kv_heads * value_bytes
                    for g in range(j * groups, (j + 1) * groups):
                        at = (g - j0 * groups) * stride + c - first
                        w0, w1 = splat(scores[at]), splat(scores[at + 1])
                        w2, w3 = splat(scores[at + 2]), splat(scores[at + 3])
                        for e in range(0, value_bytes, 64):
                            o = out + g * value_bytes + e
                            low = w0 * load(v0 + e) + w1 * load(v1 + e)
                            high = w2 * load(v2 + e) + w3 * load(v3 + e)
                            store(o, load(o) + low + high)
                c += 4
            while c < last:
                for j in range(j0, j1):
                    v = job.v + ((slot + c) * kv_heads + j) * value_bytes
                    for g in range(j * groups, (j + 1) * groups):
                        weight = splat(scores[(g - j0 * groups) * stride + c - first])
                        for e in range(0, value_bytes, 64):
                            o = out + g * value_bytes + e
                            store(o, load(o) + weight * load(v + e))
                c += 1


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _softmax(scores: Any, start: Any, count: Any, softcap: Any) -> None:
    """Turn `count` scores into weights, in place."""
    if softcap > 0:
        for i in range(start, start + count):
            scores[i] = softcap * np.tanh(scores[i] / softcap)
    top = scores[start]
    for i in range(start, start + count):
        top = max(top, scores[i])
    mass = np.float32(0.0)
    for i in range(start, start + count):
        scores[i] = _exp(scores[i] - top)
        mass += scores[i]
    factor = np.float32(1.0) / mass
    for i in range(start, start + count):
        scores[i] *= factor


def write(pointer: Any) -> None:
    """Copy the heads of each token to its slot."""
    job = numba.carray(pointer, 1)[0]
    slots = int64_at(job.slots)
    first, last = share_of(job.num_tokens)
    head_bytes = 4 * job.width
    for token in range(first, last):
        for head in range(job.num_heads):
            x = job.x + token * job.stride + head * job.head_stride
            cache = job.cache + (slots[token] * job.num_heads + head) * head_bytes
            for d in range(0, head_bytes, 4 * WIDTH):
                store(cache + d, load(x + d))


class WriteCacheCpu:
    """`write_cache` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, WRITE_JOB)
        self._kernel = Kernel(write, self._job)

    def __call__(
        self,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        k_TJD: torch.Tensor,
        v_TJE: torch.Tensor,
        batch: AttentionBatch,
    ) -> None:
        """Do what `loramux_server.kernels.attention.write_cache` defines."""
        widths = k_TJD.shape[2], v_TJE.shape[2]
        is_served = k_TJD.dtype == v_TJE.dtype == torch.float32 == k_SJD.dtype
        if not is_served or any(width % WIDTH for width in widths):
            write_cache(k_SJD, v_SJE, k_TJD, v_TJE, batch)
            return
        job = self._job[0]
        job["slots"] = batch.slot_T.data_ptr()
        for cache, x in ((k_SJD, k_TJD), (v_SJE, v_TJE)):
            if x.stride(2) != 1:
                x = x.contiguous()
            job["cache"], job["x"] = cache.data_ptr(), x.data_ptr()
            job["num_tokens"], job["num_heads"], job["width"] = x.shape
            job["stride"], job["head_stride"] = 4 * x.stride(0), 4 * x.stride(1)
            self._kernel.run(x.numel())


class DecodeRows:
    """Which requests of a batch decode, and what the loop over them needs to know of the batch."""

    def __init__(self, batch: AttentionBatch) -> None:
        is_decode = np.diff(batch.query_start_B) == 1
        self.batch = batch
        self.prompts: list[int] = np.flatnonzero(~is_decode).tolist()
        """The other requests."""
        self.longest = int(batch.context_B.max())
        self._requests = np.flatnonzero(is_decode).astype(np.int32)
        self._rows = np.ascontiguousarray(batch.query_start_B[:-1][is_decode])

    def __len__(self) -> int:
        return len(self._rows)

    def describe(self, job: Any) -> None:
        """Note in one or many `job`s what is the same for all layers."""
        batch = self.batch
        job["rows"], job["requests"] = self._rows.ctypes.data, self._requests.ctypes.data
        job["context"], job["table"] = batch.context_B.ctypes.data, batch.table_BM.ctypes.data
        job["num_rows"], job["table_stride"] = len(self._rows), batch.table_BM.shape[1]
        job["block_size"] = batch.block_size


class Scores:
    """Room for the scores of one row on each thread."""

    def __init__(self) -> None:
        self._scores = torch.empty(0)

    def describe(self, job: Any, longest: int, num_heads: int) -> None:
        """Note in one or many `job`s where there is room for `longest` tokens."""
        stride = -(-longest * num_heads // WIDTH) * WIDTH
        needed = stride * torch.get_num_threads()
        if self._scores.numel() < needed:
            self._scores = torch.empty(2 * needed)
        job["scores"], job["scores_stride"] = self._scores.data_ptr(), stride


class PagedAttentionCpu:
    """`paged_attention` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, DECODE_JOB)
        self._decode = Kernel(decode, self._job)
        self._rows: DecodeRows | None = None
        self._scores = Scores()

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Do what `loramux_server.kernels.attention.paged_attention` defines."""
        num_heads, key_width = q_THD.shape[1:]
        num_kv_heads, value_width = v_SJE.shape[1:]
        if q_THD.dtype != torch.float32 or key_width % WIDTH or value_width % WIDTH:
            return paged_attention(q_THD, k_SJD, v_SJE, batch, form)
        job = self._job[0]
        if self._rows is None or self._rows.batch is not batch:
            self._rows = DecodeRows(batch)
            self._rows.describe(job)
        if q_THD.stride(2) != 1:
            q_THD = q_THD.contiguous()
        out_THE = q_THD.new_empty(q_THD.shape[0], num_heads, value_width)
        for request in self._rows.prompts:
            attend_request(out_THE, q_THD, k_SJD, v_SJE, batch, form, request)
        if len(self._rows):
            job["q"], job["out"] = q_THD.data_ptr(), out_THE.data_ptr()
            job["k"], job["v"] = k_SJD.data_ptr(), v_SJE.data_ptr()
            job["q_stride"], job["q_head_stride"] = 4 * q_THD.stride(0), 4 * q_THD.stride(1)
            job["num_heads"], job["num_kv_heads"] = num_heads, num_kv_heads
            job["key_width"], job["value_width"] = key_width, value_width
            job["window"], job["scale"], job["softcap"] = form.window, form.scale, form.softcap
            self._scores.describe(job, self._rows.longest, num_heads)
            self._decode.run(len(self._rows) * self._rows.longest * num_heads * key_width)
        return out_THE
