"""The device that is measured: what it is, what it does at best, and how long a call takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median

import torch

from benchmarks import machine
from loramux_server.kernels.gpu.plan import Plan

_REPEATS = 20
_FAR_BYTES = 256 << 20
"""More than any cache holds."""


def choose() -> torch.device:
    """Return the GPU, or the CPU where there is none and kernels run in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> dict[str, object]:
    """Return what `benchmarks.machine` says, the same of the device, and its plan."""
    found: dict[str, object] = {
        **machine.describe(),
        "device": str(device),
        "triton": machine.version_of("triton"),
        "plan": asdict(Plan.of(device)),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["capability"] = f"sm_{properties.major}{properties.minor}"
        found["memory_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
    return found


_LEAST_SECONDS = 1e-7
"""Less than what any kernel takes: what noise makes of the difference of two times."""


def seconds_apart(device: torch.device, calls: Sequence[Callable[[], object]]) -> float:
    """Return what one of `calls` takes after a kernel that lets it begin no sooner than it ends.

    Else one of our kernels would begin while the one before, of its own kind, still runs; in a step
    most of them follow a matmul. What that other kernel takes by itself is taken away.
    """
    if device.type != "cuda":
        return seconds(device, calls)
    other = torch.empty(1, device=device)
    pairs = [partial(_both, other.zero_, call) for call in calls]
    both, alone = seconds(device, pairs), seconds(device, [other.zero_] * len(calls))
    return max(both - alone, _LEAST_SECONDS)


def _both(first: Callable[[], object], second: Callable[[], object]) -> None:
    first()
    second()


def seconds(device: torch.device, calls: Sequence[Callable[[], object]]) -> float:
    """Return what one of `calls` takes, one after the other and in turn.

    They do the same on memory of their own, so that none finds what it reads in a cache if together
    they read enough. On CUDA they are recorded as a graph: what it takes to launch them from Python
    does not count.
    """
    for call in calls:
        call()
    if device.type != "cuda":
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    taken: list[float] = []
    for _ in range(_REPEATS):
        before, after = _event(), _event()
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        taken.append(before.elapsed_time(after) / 1e3 / len(calls))
    return median(taken)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def copies_needed(device: torch.device, num_bytes: int) -> int:
    """Return how many copies of an operand of `num_bytes` no cache holds together.

    One where kernels are interpreted: there caches do not matter.
    """
    if device.type != "cuda":
        return 1
    return max(1, min(64, -(-_FAR_BYTES // max(1, num_bytes))))


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy of much memory reads and writes."""
    far = torch.empty(_FAR_BYTES, dtype=torch.uint8, device=device)
    near = torch.empty_like(far)
    return 2 * far.numel() / seconds(device, [lambda: near.copy_(far)])
