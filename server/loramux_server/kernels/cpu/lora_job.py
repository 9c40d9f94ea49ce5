"""The job of the compiled LoRA loops: a step's segments and one group of layers."""

from typing import Any

import numpy as np

from loramux_server.kernels.cpu.register_tile import ONES, ZEROS
from loramux_server.lora.segments import Segments

LORA_JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "y", "x", "a", "b", "h", "columns", "start", "end", "row", "size", "format", "rank",
            "scale", "num_segments", "num_parts", "max_parts", "in_features", "out_features",
            "max_rank", "ones", "zeros", "few", "affine",
        )
    ],
    align=True,
)  # fmt: skip


class SegmentJobs:
    """The job fields that describe a step's segments."""

    def __init__(self, segments: Segments) -> None:
        rank_GSP, scale_GSP = segments.rank_GSP, segments.scale_GSP
        assert rank_GSP.flags.c_contiguous
        assert scale_GSP.flags.c_contiguous
        self.segments = segments
        self.max_rank = int(rank_GSP.max())
        rows_GSP = rank_GSP
        if segments.affine_GSP is not None:
            assert segments.affine_GSP.flags.c_contiguous
            rows_GSP = rank_GSP + segments.affine_GSP
        self.dots_G: list[int] = (
            rows_GSP.sum(axis=2) @ (segments.end_S - segments.start_S)
        ).tolist()
        """Work of each group: rank rows times tokens, approximately."""

    def describe(self, job: Any, groups: Any) -> None:
        """Fill in the segment fields of one or many `job`s, whose `groups` are an int or array."""
        segments = self.segments
        rank_GSP, scale_GSP = segments.rank_GSP, segments.scale_GSP
        job["rank"] = rank_GSP.ctypes.data + groups * rank_GSP.strides[0]
        job["scale"] = scale_GSP.ctypes.data + groups * scale_GSP.strides[0]
        job["start"], job["end"] = segments.start_S.ctypes.data, segments.end_S.ctypes.data
        job["row"], job["size"] = segments.row_S.ctypes.data, segments.size_S.ctypes.data
        job["format"] = segments.format_S.ctypes.data
        affine_GSP = segments.affine_GSP
        job["affine"] = (
            0 if affine_GSP is None else affine_GSP.ctypes.data + groups * affine_GSP.strides[0]
        )
        job["ones"], job["zeros"] = ONES.data_ptr(), ZEROS.data_ptr()
        job["num_segments"], job["max_parts"] = rank_GSP.shape[1:]
        job["max_rank"] = self.max_rank
