"""The operations of a layer between its matmuls on a CPU, each compiled into one pass."""

from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels import pointwise
from loramux_server.kernels.cpu.parallel import Kernel, share_of
from loramux_server.kernels.cpu.simd import WIDTH, exp, load, splat, store, total

NORM_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "x", "x_stride", "weight", "out", "out_stride", "rows", "heads", "head_stride", "width",
        )
    ]
    + [("epsilon", np.float64)],
    align=True,
)  # fmt: skip
GATE_JOB = np.dtype([(n, np.int64) for n in ("y", "out", "rows", "width")], align=True)
ADD_JOB = np.dtype([(n, np.int64) for n in ("x", "y", "rows", "width")], align=True)
ROTATE_JOB = np.dtype([(n, np.int64) for n in ("x", "cos", "sin", "rows", "heads", "width",
                                               "stride", "head_stride")], align=True)  # fmt: skip


def normalize(pointer: Any) -> None:
    """Write the RMS norm of each head of x to out; rows are split among the threads."""
    job = numba.carray(pointer, 1)[0]
    first, last = share_of(job.rows)
    row_bytes = 4 * job.width
    for row in range(first, last):
        for head in range(job.heads):
            x = job.x + row * job.x_stride + head * job.head_stride
            out = job.out + row * job.out_stride + head * job.head_stride
            square = splat(np.float32(0.0))
            for k in range(0, row_bytes, 4 * WIDTH):
                square = square + load(x + k) * load(x + k)
            mean = total(square) / np.float32(job.width)
            factor = splat(np.float32(1.0) / np.sqrt(mean + np.float32(job.epsilon)))
            for k in range(0, row_bytes, 4 * WIDTH):
                store(out + k, load(x + k) * factor * load(job.weight + k))


def add(pointer: Any) -> None:
    """Add x to y; rows are split among the threads."""
    job = numba.carray(pointer, 1)[0]
    first, last = share_of(job.rows)
    for at in range(4 * first * job.width, 4 * last * job.width, 4 * WIDTH):
        store(job.y + at, load(job.y + at) + load(job.x + at))


def gate(pointer: Any) -> None:
    """Write silu(gate) * up, the halves of each row of y, to out; rows are split among threads."""
    job = numba.carray(pointer, 1)[0]
    first, last = share_of(job.rows)
    half_bytes = 4 * job.width
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    for row in range(first, last):
        y, out = job.y + 2 * row * half_bytes, job.out + row * half_bytes
        for k in range(0, half_bytes, 4 * WIDTH):
            g = load(y + k)
            store(out + k, g / (one + exp(zero - g)) * load(y + half_bytes + k))


def rope(pointer: Any) -> None:
    """Apply RoPE to each head of each row, in place; rows are split among the threads."""
    job = numba.carray(pointer, 1)[0]
    first, last = share_of(job.rows)
    half_bytes = 2 * job.width
    for row in range(first, last):
        cos, sin = job.cos + 2 * row * half_bytes, job.sin + 2 * row * half_bytes
        for head in range(job.heads):
            x = job.x + row * job.stride + head * job.head_stride
            for k in range(0, half_bytes, 4 * WIDTH):
                a, b = load(x + k), load(x + half_bytes + k)
                store(x + k, a * load(cos + k) - b * load(sin + k))
                store(
                    x + half_bytes + k,
                    b * load(cos + half_bytes + k) + a * load(sin + half_bytes + k),
                )


class RmsNormCpu:
    """`rms_norm` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, NORM_JOB)
        self._kernel = Kernel(normalize, self._job)

    def __call__(self, x_TK: torch.Tensor, weight_K: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Implement `loramux_server.kernels.pointwise.rms_norm`."""
        width = x_TK.shape[-1]
        if not _is_served(x_TK, weight_K) or width % WIDTH:
            return pointwise.rms_norm(x_TK, weight_K, epsilon)
        out_TK = torch.empty_like(x_TK)
        job = self._job[0]
        job["x"], job["weight"], job["out"] = (
            x_TK.data_ptr(),
            weight_K.data_ptr(),
            out_TK.data_ptr(),
        )
        job["rows"], job["width"], job["epsilon"] = x_TK.numel() // width, width, epsilon
        job["x_stride"] = job["out_stride"] = 4 * width
        job["heads"] = 1
        self._kernel.run(x_TK.numel())
        return out_TK


class SiluMulCpu:
    """`silu_mul` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, GATE_JOB)
        self._kernel = Kernel(gate, self._job)

    def __call__(self, y_TN: torch.Tensor) -> torch.Tensor:
        """Implement `loramux_server.kernels.pointwise.silu_mul`."""
        width = y_TN.shape[-1] // 2
        if not _is_served(y_TN) or y_TN.shape[-1] % (2 * WIDTH):
            return pointwise.silu_mul(y_TN)
        out = y_TN.new_empty(*y_TN.shape[:-1], width)
        job = self._job[0]
        job["y"], job["out"] = y_TN.data_ptr(), out.data_ptr()
        job["rows"], job["width"] = y_TN.numel() // (2 * width), width
        self._kernel.run(4 * y_TN.numel())
        return out


class RotateCpu:
    """`rotate` for float32 on a CPU."""

    def __init__(self) -> None:
        self._job = np.zeros(1, ROTATE_JOB)
        self._kernel = Kernel(rope, self._job)

    def __call__(
        self, q_THD: torch.Tensor, k_TJD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor
    ) -> None:
        """Implement `loramux_server.kernels.pointwise.rotate`."""
        num_tokens, _, width = q_THD.shape
        is_served = _is_served(cos_TD, sin_TD) and cos_TD.shape == (num_tokens, width)
        if not is_served or width % (2 * WIDTH) or q_THD.stride(2) != 1 or k_TJD.stride(2) != 1:
            pointwise.rotate(q_THD, k_TJD, cos_TD, sin_TD)
            return
        job = self._job[0]
        job["cos"], job["sin"] = cos_TD.data_ptr(), sin_TD.data_ptr()
        job["rows"], job["width"] = num_tokens, width
        for x in (q_THD, k_TJD):
            job["x"], job["heads"] = x.data_ptr(), x.shape[1]
            job["stride"], job["head_stride"] = 4 * x.stride(0), 4 * x.stride(1)
            self._kernel.run(x.numel())


def _is_served(*tensors: torch.Tensor) -> bool:
    return all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
