"""Programmatic dependent launch: kernels start before their predecessor has ended.

Launch latency and reading the step's metadata overlap with the predecessor. Step inputs and adapter
weights arrive by copies, which stay ordered as usual.

Source: programmatic dependent launch, CUDA C++ Programming Guide; available since Hopper.
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
    """Return the launch options on `device` of a kernel that calls `wait_for_predecessor`.

    A kernel that reads h from the separate shrink kernel has two predecessors, on two streams, and
    is launched normally, after both have ended.
    """
    is_gathered = low_rank is not None and not low_rank.is_merged
    if is_gathered or not _has_dependent_launch(device):
        return {"IS_DEPENDENT": False}
    return {"IS_DEPENDENT": True, "launch_pdl": True}


@cache
def _has_dependent_launch(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER


@triton.jit
def wait_for_predecessor(IS_DEPENDENT: tl.constexpr) -> None:
    """Wait until the results of preceding kernels are visible, then let the next kernel launch.

    Every program has to call it before it reads or writes memory that they read or write. Otherwise
    this kernel could end before they have.
    """
    if IS_DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
