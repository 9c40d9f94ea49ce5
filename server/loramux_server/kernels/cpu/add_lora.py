"""The segmented low-rank matmul on a CPU: the compiled shrink and expand, and their buffer."""

import numpy as np
import torch

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.cpu.expand import FEW, expand
from loramux_server.kernels.cpu.lora_job import LORA_JOB, SegmentJobs
from loramux_server.kernels.cpu.parallel import Kernel
from loramux_server.kernels.cpu.shrink import shrink
from loramux_server.kernels.cpu.simd import WIDTH
from loramux_server.lora.segments import Int32, Segments


def serves(in_features: int, columns: Int32) -> bool:
    """Return whether the compiled loops support a group of this shape."""
    return not (in_features % WIDTH or (columns % WIDTH).any())


class AddLoraCpu:
    """`add_lora` for float32 on a CPU."""

    def __init__(self, few: int = FEW) -> None:
        """Compile the loops.

        Args:
            few: Tokens of a segment up to which its B rows are streamed row by row. The two paths
                sum in a different order; with 0 there is only one, for any number of tokens.
        """
        self._job = np.zeros(1, LORA_JOB)
        self._job["few"] = few
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
        """Implement `loramux_server.kernels.add_lora.add_lora`."""
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
