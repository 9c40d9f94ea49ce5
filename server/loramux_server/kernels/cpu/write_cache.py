"""Writing keys and values to the KV cache on a CPU, compiled."""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.attention import AttentionBatch, write_cache
from loramux_server.kernels.cpu.parallel import Kernel, int64_at, share_of
from loramux_server.kernels.cpu.simd import WIDTH, load, store

WRITE_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "cache", "x", "slots", "num_tokens", "num_heads", "width", "stride", "head_stride",
        )
    ],
    align=True,
)  # fmt: skip


def write(pointer: Any) -> None:
    """Copy all heads of each token to its slot; tokens are split among the threads."""
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
        """Implement `loramux_server.kernels.attention.write_cache`."""
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
