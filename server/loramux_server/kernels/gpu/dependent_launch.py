"""Kernels that are launched before the one before them has ended.

What it takes to launch one, and to read what it is told of the step, passes while the other still
runs. Steps and adapters come to a device by other ways, which are waited for as ever.

Source: programmatic dependent launch, CUDA C++ Programming Guide; devices since Hopper have it.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from loramux_server.kernels.gpu.tiles import LowRank

_HOPPER = (9, 0)


def launch_options(device: torch.device, low_rank: LowRank | None) -> dict[str, Any]:
    """Return what a kernel that calls `wait` is launched with on `device`.

    One that reads h where a kernel of its own wrote it has two kernels before it, on two streams,
    and is launched when both have ended.
    """
    is_gathered = low_rank is not None and not low_rank.is_merged
    if is_gathered or not _has_dependent_launch(device):
        return {"IS_DEPENDENT": False}
    return {"IS_DEPENDENT": True, "launch_pdl": True}


@cache
def _has_dependent_launch(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER


@triton.jit
def wait(IS_DEPENDENT: tl.constexpr) -> None:
    """Wait until what the kernels before have written is there; the next one may be launched.

    Each program has to call it, before it reads or writes what they read or write: else the end of
    this kernel would not be the end of those.
    """
    if IS_DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
