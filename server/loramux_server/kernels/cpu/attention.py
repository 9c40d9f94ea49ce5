"""Attention over a paged KV cache on a CPU, compiled: keys and values are read in place.

A few consecutive tokens of a request form a tile and are processed together, with all their heads:
they read the same keys and values, and all heads of a cached token are contiguous.
"""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.attention import (
    AttentionBatch,
    AttentionForm,
    paged_attention,
)
from loramux_server.kernels.cpu.dot_tile import INPUTS, ROWS, dots_for
from loramux_server.kernels.cpu.parallel import (
    FASTMATH,
    Kernel,
    bits_as_float32,
    first_unit,
    float32_at,
    int32_at,
    share_of,
    thread_number,
)
from loramux_server.kernels.cpu.register_tile import MAX_ROWS, ONES, PANEL, ZEROS, tile_for
from loramux_server.kernels.cpu.simd import FLOAT32, WIDTH, prefetch, splat, store

ATTEND_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "q", "k", "v", "out", "scores", "tiles", "num_tiles", "table", "num_heads",
            "num_kv_heads", "key_width", "value_width", "block_size", "table_stride",
            "scores_stride", "window", "q_stride", "q_head_stride", "ones", "zeros", "sinks",
        )
    ]
    + [("scale", np.float64), ("softcap", np.float64)],
    align=True,
)  # fmt: skip
_dots, _tile, _half_tile = dots_for(FLOAT32), tile_for(FLOAT32), tile_for(FLOAT32, vectors=1)


@numba.njit(inline="always", fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """e**x for x <= 0, in float32 and without a call, so that loops over it can be vectorized."""
    x = max(x, np.float32(-87.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 split in two (Cody-Waite): the product with the first part is exact.
    r = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    tail = np.float32(1 / 120) + r * np.float32(1 / 720)
    tail = np.float32(1 / 6) + r * (np.float32(1 / 24) + r * tail)
    poly = np.float32(1) + r * (np.float32(1) + r * (np.float32(0.5) + r * tail))
    return poly * bits_as_float32((np.int32(whole) + np.int32(127)) << np.int32(23))


def attend(pointer: Any) -> None:
    """Attend for all tiles; (tile, key head) pairs are split among threads by tokens x context."""
    job = numba.carray(pointer, 1)[0]
    tiles = int32_at(job.tiles)
    scores = job.scores + thread_number() * job.scores_stride * 4
    kv_heads = job.num_kv_heads
    all_work = 0
    for tile in range(job.num_tiles):
        all_work += tiles[4 * tile + 2] * tiles[4 * tile + 3] * kv_heads
    share_begin, share_end = share_of(all_work)
    work = 0
    for tile in range(job.num_tiles):
        count, length = tiles[4 * tile + 2], tiles[4 * tile + 3]
        j0 = first_unit(share_begin, work, count * length, kv_heads)
        j1 = first_unit(share_end, work, count * length, kv_heads)
        work += count * length * kv_heads
        if j0 >= j1:
            continue
        # Causal: each token of the tile sees one key more than the one before it.
        first = max(0, length - count + 1 - job.window) if job.window > 0 else 0
        blocks = int32_at(job.table + tiles[4 * tile] * job.table_stride * 4)
        row = tiles[4 * tile + 1]
        _score(job, scores, blocks, row, count, first, length, j0, j1)
        groups = job.num_heads // kv_heads
        for i in range((j1 - j0) * count * groups):
            seen = length - count + 1 + i // groups % count
            begin = max(0, seen - job.window) if job.window > 0 else 0
            sink = np.float32(-np.inf)
            if job.sinks != 0:
                sink = float32_at(job.sinks)[(j0 + i // (groups * count)) * groups + i % groups]
            softmax(
                float32_at(scores + 4 * i * (length - first)), begin - first, seen - first,
                length - first, np.float32(job.softcap), sink,
            )  # fmt: skip
        _mix(job, scores, blocks, row, count, first, length, j0, j1)


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _score(
    job: Any, scores: Any, blocks: Any, row: Any, count: Any, first: Any, length: Any, j0: Any,
    j1: Any,
) -> None:  # fmt: skip
    """Write q . k * scale to scores[(j - j0, token, group), key], for keys first to length."""
    size, groups = job.block_size, job.num_heads // job.num_kv_heads
    key_bytes = job.key_width * 4
    token_bytes = job.num_kv_heads * key_bytes
    stride, scale = 4 * (length - first), np.float32(job.scale)
    final = (length - 1) // size
    for block in range(first // size, final + 1):
        start, end = max(first, block * size), min(length, (block + 1) * size)
        keys = job.k + (blocks[block] * size + start - block * size) * token_bytes
        ahead = job.k + blocks[min(block + 1, final)] * size * token_bytes
        for c in range(0, end - start, ROWS):
            for j in range(j0, j1):
                for token in range(c, c + ROWS):
                    for line in range(j * key_bytes, (j + 1) * key_bytes, 64):
                        prefetch(ahead + token * token_bytes + line)
                k = keys + c * token_bytes + j * key_bytes
                for i in range(count):
                    q = job.q + (row + i) * job.q_stride + j * groups * job.q_head_stride
                    out = scores + ((j - j0) * count + i) * groups * stride
                    for g in range(0, groups, INPUTS):
                        _dots(
                            min(ROWS, end - start - c), min(INPUTS, groups - g), k, token_bytes,
                            q + g * job.q_head_stride, job.q_head_stride, job.key_width, scale,
                            out + g * stride + 4 * (start - first + c), stride,
                        )  # fmt: skip


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _mix(
    job: Any, scores: Any, blocks: Any, row: Any, count: Any, first: Any, length: Any, j0: Any,
    j1: Any,
) -> None:  # fmt: skip
    """Write weights @ v to out, where `scores` holds the weights after the softmax."""
    size, groups = job.block_size, job.num_heads // job.num_kv_heads
    value_bytes = job.value_width * 4
    token_bytes = job.num_kv_heads * value_bytes
    stride = 4 * (length - first)
    out = job.out + row * job.num_heads * value_bytes
    for i in range(count):
        begin = out + i * job.num_heads * value_bytes
        for e in range(j0 * groups * value_bytes, j1 * groups * value_bytes, 4 * WIDTH):
            store(begin + e, splat(np.float32(0.0)))
    final = (length - 1) // size
    for block in range(first // size, final + 1):
        start, end = max(first, block * size), min(length, (block + 1) * size)
        values = job.v + (blocks[block] * size + start - block * size) * token_bytes
        ahead = job.v + blocks[min(block + 1, final)] * size * token_bytes
        for j in range(j0, j1):
            for i in range(count):
                at = scores + ((j - j0) * count + i) * groups * stride + 4 * (start - first)
                for g in range(0, groups, MAX_ROWS):
                    rows, weights = min(MAX_ROWS, groups - g), at + g * stride
                    y = out + (i * job.num_heads + j * groups + g) * value_bytes
                    for e in range(0, job.value_width, PANEL):
                        v, y_e = values + j * value_bytes + 4 * e, y + 4 * e
                        then = ahead + j * value_bytes + 4 * e
                        if e + PANEL <= job.value_width:
                            _tile(rows, weights, stride, v, token_bytes, end - start, job.ones,
                                  job.zeros, y_e, value_bytes, 1, then, token_bytes)  # fmt: skip
                        else:
                            _half_tile(rows, weights, stride, v, token_bytes, end - start,
                                       job.ones, job.zeros, y_e, value_bytes, 1, then,
                                       token_bytes)  # fmt: skip


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def softmax(scores: Any, begin: Any, end: Any, count: Any, softcap: Any, sink: Any) -> None:
    """Apply the softmax to scores `begin` to `end` of `count`, in place; set the others to zero.

    `sink` is one more score of the softmax, whose weight is dropped; -inf for none.
    """
    if softcap > 0:
        for i in range(begin, end):
            scores[i] = softcap * np.tanh(scores[i] / softcap)
    top = max(scores[begin], sink)
    for i in range(begin, end):
        top = max(top, scores[i])
    mass = np.float32(0.0)
    if sink > -np.inf:
        mass = _exp(sink - top)
    for i in range(begin, end):
        scores[i] = _exp(scores[i] - top)
        mass += scores[i]
    factor = np.float32(1.0) / mass
    for i in range(begin, end):
        scores[i] *= factor
    for i in range(begin):
        scores[i] = np.float32(0.0)
    for i in range(end, count):
        scores[i] = np.float32(0.0)


def takes(form: AttentionForm) -> bool:
    """Return whether the compiled loop supports this `form`."""
    sinks_H = form.sinks_H
    return sinks_H is None or (sinks_H.dtype == torch.float32 and sinks_H.is_contiguous())


def describe_form(job: Any, form: AttentionForm) -> None:
    """Fill in the fields of `job` that describe its layer's `form`."""
    job["window"], job["scale"], job["softcap"] = form.window, form.scale, form.softcap
    job["sinks"] = 0 if form.sinks_H is None else form.sinks_H.data_ptr()


class QueryTiles:
    """The tokens of a batch, cut into tiles that are processed together."""

    def __init__(self, batch: AttentionBatch, groups: int) -> None:
        """Cut `batch` into tiles, for a model in which `groups` query heads share a key head."""
        self.batch = batch
        size = max(1, MAX_ROWS // groups)
        start_B, num_queries_B = batch.query_start_B[:-1], np.diff(batch.query_start_B)
        tiles_B = -(-num_queries_B // size)
        request_I = np.repeat(np.arange(len(tiles_B), dtype=np.int32), tiles_B)
        # Index of the tile within its request.
        place_I = np.arange(len(request_I)) - np.repeat(np.cumsum(tiles_B) - tiles_B, tiles_B)
        done_I = size * place_I
        count_I = np.minimum(size, num_queries_B[request_I] - done_I)
        before_B = batch.context_B - num_queries_B
        self._tiles_I4 = np.stack(
            (request_I, start_B[request_I] + done_I, count_I,
             before_B[request_I] + done_I + count_I), axis=1,
        ).astype(np.int32)  # fmt: skip
        """Request, first token, number of tokens, and context length of the last of them."""
        self._room = size * int(batch.context_B.max())

    def __len__(self) -> int:
        return len(self._tiles_I4)

    def describe(self, job: Any, num_heads: int, scores: torch.Tensor) -> torch.Tensor:
        """Fill in the fields of one or many `job`s that all layers share; return the score buffer.

        Args:
            job: The job or jobs.
            num_heads: Query heads.
            scores: Buffer for the scores; a new one is allocated if it is too small.
        """
        stride = -(-self._room * num_heads // WIDTH) * WIDTH
        needed = stride * torch.get_num_threads()
        if scores.numel() < needed:
            scores = torch.empty(2 * needed)
        batch = self.batch
        job["tiles"], job["num_tiles"] = self._tiles_I4.ctypes.data, len(self)
        job["table"], job["table_stride"] = batch.table_BM.ctypes.data, batch.table_BM.shape[1]
        job["block_size"] = batch.block_size
        job["scores"], job["scores_stride"] = scores.data_ptr(), stride
        job["ones"], job["zeros"] = ONES.data_ptr(), ZEROS.data_ptr()
        return scores


class PagedAttentionCpu:
    """`paged_attention` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, ATTEND_JOB)
        self._kernel = Kernel(attend, self._job)
        self._tiles: QueryTiles | None = None
        self._shape: tuple[int, int] = (0, 0)
        self._scores = torch.empty(0)

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_SJD: torch.Tensor,
        v_SJE: torch.Tensor,
        batch: AttentionBatch,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.attention.paged_attention`."""
        num_heads, key_width = q_THD.shape[1:]
        num_kv_heads, value_width = v_SJE.shape[1:]
        is_served = q_THD.dtype == torch.float32 and takes(form) and batch.bidirectional_T2 is None
        if not is_served or key_width % WIDTH or value_width % WIDTH:
            return paged_attention(q_THD, k_SJD, v_SJE, batch, form)
        job, shape = self._job[0], (num_heads, num_kv_heads)
        if self._tiles is None or self._tiles.batch is not batch or self._shape != shape:
            self._tiles, self._shape = QueryTiles(batch, num_heads // num_kv_heads), shape
            self._scores = self._tiles.describe(job, num_heads, self._scores)
        if q_THD.stride(2) != 1:
            q_THD = q_THD.contiguous()
        out_THE = q_THD.new_empty(q_THD.shape[0], num_heads, value_width)
        job["q"], job["out"] = q_THD.data_ptr(), out_THE.data_ptr()
        job["k"], job["v"] = k_SJD.data_ptr(), v_SJE.data_ptr()
        job["q_stride"], job["q_head_stride"] = 4 * q_THD.stride(0), 4 * q_THD.stride(1)
        job["num_heads"], job["num_kv_heads"] = num_heads, num_kv_heads
        job["key_width"], job["value_width"] = key_width, value_width
        describe_form(job, form)
        self._kernel.run(len(self._tiles) * int(batch.context_B.max()) * num_heads * key_width)
        return out_THE
