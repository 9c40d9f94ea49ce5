"""A linear layer on a CPU, compiled: its weights are streamed once, in their storage format.

Weights are packed in panels of PANEL outputs, depth-major. A panel is multiplied with a few tokens
at a time, whose sums stay in registers; meanwhile the next panel is prefetched. So few tokens are
bound by memory bandwidth, and many by arithmetic.
"""

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch

from loramux_server.kernels.cpu.parallel import (
    FASTMATH,
    Kernel,
    float32_at,
    share_of,
    thread_number,
)
from loramux_server.kernels.cpu.register_tile import MAX_ROWS, PANEL, tile_for
from loramux_server.kernels.cpu.simd import BFLOAT16, FLOAT16, FLOAT32, INT8
from loramux_server.kernels.linear import Linear, make_linear
from loramux_server.kernels.saved_linear import SavedLinear, make_saved_linear
from loramux_server.kernels.weight_storage import Quantization, quantize, storage_dtype

LINEAR_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "x", "x_stride", "weights", "scale", "bias", "y", "y_stride", "adds", "num_tokens",
            "depth", "outputs", "scratch",
        )
    ],
    align=True,
)  # fmt: skip
_tile_float32, _tile_bfloat16 = tile_for(FLOAT32), tile_for(BFLOAT16)
_tile_float16, _tile_int8 = tile_for(FLOAT16), tile_for(INT8)


@numba.njit(fastmath=FASTMATH)  # type: ignore[untyped-decorator]
def _multiply(job: Any, tile: Any, item_bytes: Any) -> None:
    """Write x @ weights * scale + bias to y, or add it; split by panels, then tiles of tokens."""
    tiles = (job.num_tokens + MAX_ROWS - 1) // MAX_ROWS
    size = (job.num_tokens + tiles - 1) // max(1, tiles)
    panel_bytes = job.depth * PANEL * item_bytes
    first, last = share_of((job.outputs + PANEL - 1) // PANEL * tiles)
    for unit in range(first, last):
        panel, start = unit // tiles, unit % tiles * size
        rows = min(size, job.num_tokens - start)
        column = panel * PANEL
        y, y_stride = job.y + start * job.y_stride + 4 * column, job.y_stride
        width = min(PANEL, job.outputs - column)
        if width < PANEL:
            # The tile writes whole panels: a partial one goes through scratch memory.
            y, y_stride = job.scratch + thread_number() * 4 * MAX_ROWS * PANEL, 4 * PANEL
            if job.adds:
                at = job.y + start * job.y_stride + 4 * column
                _copy(y, y_stride, at, job.y_stride, rows, width)
        weights = job.weights + panel * panel_bytes
        # Each tile of a panel prefetches its share of the next panel.
        ahead = weights + panel_bytes + start * panel_bytes // max(1, job.num_tokens)
        tile(
            rows, job.x + start * job.x_stride, job.x_stride, weights, PANEL * item_bytes,
            job.depth, job.scale + 4 * column, job.bias + 4 * column, y, y_stride, job.adds,
            ahead, panel_bytes // (tiles * job.depth),
        )  # fmt: skip
        if width < PANEL:
            at = job.y + start * job.y_stride + 4 * column
            _copy(at, job.y_stride, y, y_stride, rows, width)


def _multiply_float32(pointer: Any) -> None:
    _multiply(numba.carray(pointer, 1)[0], _tile_float32, 4)


def _multiply_bfloat16(pointer: Any) -> None:
    _multiply(numba.carray(pointer, 1)[0], _tile_bfloat16, 2)


def _multiply_float16(pointer: Any) -> None:
    _multiply(numba.carray(pointer, 1)[0], _tile_float16, 2)


def _multiply_int8(pointer: Any) -> None:
    _multiply(numba.carray(pointer, 1)[0], _tile_int8, 1)


_LOOPS = {
    torch.float32: _multiply_float32,
    torch.bfloat16: _multiply_bfloat16,
    torch.float16: _multiply_float16,
    torch.int8: _multiply_int8,
}
"""Storage format of the weights -> the loop."""


@numba.njit  # type: ignore[untyped-decorator]
def _copy(to: Any, to_stride: Any, x: Any, x_stride: Any, rows: Any, width: Any) -> None:
    for row in range(rows):
        to_row, x_row = float32_at(to + row * to_stride), float32_at(x + row * x_stride)
        for n in range(width):
            to_row[n] = x_row[n]


class LinearCpu:
    """`make_linear` and `make_saved_linear` for float32 on a CPU."""

    def __init__(
        self, values_NK: torch.Tensor, dtype: torch.dtype, scale_N: torch.Tensor | None = None,
        bias_N: torch.Tensor | None = None, *, is_exact: bool = True,
    ) -> None:  # fmt: skip
        """Pack a copy of the weights.

        Args:
            values_NK: The weights before scaling.
            dtype: Storage format: values are rounded to it while packing, without a full copy.
            scale_N: Scale per output; None for ones.
            bias_N: None for zeros.
            is_exact: Whether the stored weights equal the original ones, so that `lookup` works.
        """
        self.outputs, self.depth = values_NK.shape
        self._panels = _panels(values_NK, dtype)
        padding = len(self._panels) * PANEL
        self._scale = _filled(1, padding) if scale_N is None else _padded(scale_N, padding)
        self._bias = _filled(0, padding) if bias_N is None else _padded(bias_N, padding)
        self._scratch = _scratch()
        self._job = np.zeros(1, LINEAR_JOB)
        self.loop = _LOOPS[self._panels.dtype]
        """The compiled loop's function, which takes a job."""
        self._kernel = Kernel(self.loop, self._job)
        self.describe(self._job)
        self.lookup = self._picked if is_exact else None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._panels.nbytes

    def to(self, device: torch.device) -> "LinearCpu":
        """Return the layer itself; no other device is supported."""
        assert device.type == "cpu"
        return self

    def describe(self, job: Any) -> None:
        """Fill in the fields of `job` that are the same in every call."""
        job["weights"] = self._panels.data_ptr()
        job["scale"], job["bias"] = self._scale.data_ptr(), self._bias.data_ptr()
        job["scratch"], job["depth"], job["outputs"] = (
            self._scratch.data_ptr(),
            self.depth,
            self.outputs,
        )

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """Return `x_TK @ weight.T + bias` as [T, N]."""
        if x_TK.stride(1) != 1:
            x_TK = x_TK.contiguous()
        num_tokens = len(x_TK)
        y_TN = x_TK.new_empty(num_tokens, self.outputs)
        job = self._job[0]
        if len(self._scratch) < _scratch_size():  # it was created by a thread with a smaller team
            self._scratch = _scratch()
            job["scratch"] = self._scratch.data_ptr()
        job["x"], job["x_stride"], job["y"] = x_TK.data_ptr(), 4 * x_TK.stride(0), y_TN.data_ptr()
        job["y_stride"], job["num_tokens"] = 4 * self.outputs, num_tokens
        self._kernel.run(num_tokens * self.depth * self.outputs)
        return y_TN

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return rows `start` to `end` of the weight, clipped to its size, as stored; float32."""
        end = min(end, self.outputs)
        first, last = start // PANEL, -(-end // PANEL)
        values_NK = self._panels[first:last].transpose(1, 2).reshape(-1, self.depth)
        scale_N = self._scale[first * PANEL : last * PANEL]
        rows_NK = values_NK.float() * scale_N[:, None]
        return rows_NK[start - first * PANEL : end - first * PANEL]

    def _picked(self, row_T: torch.Tensor) -> torch.Tensor:
        return self._panels[row_T // PANEL, :, row_T % PANEL].float()


def make_linear_cpu(
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    quantization: Quantization = Quantization.NONE,
) -> Linear:
    """Implement `loramux_server.kernels.linear.make_linear`."""
    if weight_NK.dtype != torch.float32:
        return make_linear(weight_NK, bias_N, quantization)
    if quantization is Quantization.INT8:
        values_NK, scale_N = quantize(weight_NK, quantization)
        return LinearCpu(values_NK, values_NK.dtype, scale_N, bias_N, is_exact=False)
    is_exact = quantization is Quantization.NONE or (
        quantization is Quantization.BFLOAT16
        and storage_dtype(weight_NK, Quantization.NONE) is torch.bfloat16
    )
    dtype = storage_dtype(weight_NK, quantization)
    return LinearCpu(weight_NK, dtype, bias_N=bias_N, is_exact=is_exact)


def make_saved_linear_cpu(weight_NK: torch.Tensor, dtype: torch.dtype) -> SavedLinear:
    """Implement `loramux_server.kernels.saved_linear.make_saved_linear`."""
    if weight_NK.dtype != torch.float32:
        return make_saved_linear(weight_NK, dtype)
    return LinearCpu(weight_NK, dtype)


def _panels(values_NK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights as panels of [K, PANEL]; the last one is padded with zeros."""
    outputs, depth = values_NK.shape
    panels = values_NK.new_zeros(-(-outputs // PANEL), depth, PANEL, dtype=dtype)
    whole = outputs // PANEL
    panels[:whole] = values_NK[: whole * PANEL].view(whole, PANEL, depth).transpose(1, 2)
    if whole < len(panels):
        panels[whole, :, : outputs - whole * PANEL] = values_NK[whole * PANEL :].T
    return panels


@lru_cache(maxsize=32)
def _filled(value: float, size: int) -> torch.Tensor:
    """Return a constant vector of `size`, shared by all layers."""
    return torch.full((size,), float(value))


def _scratch() -> torch.Tensor:
    return torch.empty(_scratch_size())


def _scratch_size() -> int:
    return torch.get_num_threads() * MAX_ROWS * PANEL


def _padded(x_N: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.pad(x_N, (0, size - len(x_N)))
