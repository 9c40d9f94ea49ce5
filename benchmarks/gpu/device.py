"""The measured device: its properties, its peak bandwidth, and how to time calls."""

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
"""Larger than any cache."""


def choose() -> torch.device:
    """Return the GPU, or without one the CPU, where kernels run in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> dict[str, object]:
    """Return the facts of `benchmarks.machine`, those of the device, and its plan."""
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
"""Less than the time of any kernel: the lower bound of a noisy difference of two times."""


def seconds_apart(device: torch.device, calls: Sequence[Callable[[], object]]) -> float:
    """Return the time of one of `calls` after a kernel that it cannot overlap with.

    Otherwise one of our kernels could start while the previous one of its kind is still running; in
    a step most of them follow a matmul. The time of that other kernel alone is subtracted.
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
    """Return the time of one of `calls`, which run one after the other.

    They do the same on separate memory, so that none finds its operands in a cache if together they
    read enough. On CUDA they are captured as a graph, which excludes the cost of launches from
    Python.
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
    """Return how many copies of an operand of `num_bytes` exceed all caches.

    One if kernels are interpreted, where caches do not matter.
    """
    if device.type != "cuda":
        return 1
    return max(1, min(64, -(-_FAR_BYTES // max(1, num_bytes))))


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    far = torch.empty(_FAR_BYTES, dtype=torch.uint8, device=device)
    near = torch.empty_like(far)
    return 2 * far.numel() / seconds(device, [lambda: near.copy_(far)])
