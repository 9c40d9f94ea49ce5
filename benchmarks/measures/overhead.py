"""Overhead of serving: unused LoRA support, CPU time of the frontend, memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

from benchmarks import load, server
from benchmarks.local_engine import LocalEngine
from benchmarks.setting import AdapterSet, Setting
from loramux_server.engine import batch
from loramux_server.engine import engine as engine_module
from loramux_server.models.packed_linear import PackedLinear
from loramux_server.wire.engine_config import EngineConfig

ADAPTERS = AdapterSet(32)
BATCH, CONTEXT, STEPS = 8, 144, 100
CONCURRENCY = 32
IDLE_SECONDS = 2.0
KV_SHARE = 0.75


def unused_support(setting: Setting) -> list[float]:
    """Measure the speed of base-only steps with adapter support, ÷ with it removed.

    Decode steps of one engine in this process alternate. In every second one nothing checks for
    adapters: neither the batch layout nor the layers.
    """
    config = EngineConfig(model="", kv_memory=1 << 30, max_running=BATCH)
    engine = LocalEngine(setting.base, config)
    ratios = []
    for _ in range(setting.repeats):
        engine.fill(BATCH, [], CONTEXT)
        engine.time_steps(3)
        pairs = []
        for step in range(STEPS):
            # Each goes first in every second pair, and only neighbors are compared: speed drifts.
            taken = {}
            for is_bare in (step % 2 == 0, step % 2 != 0):
                with _support_cut_out() if is_bare else nullcontext():
                    (taken[is_bare],) = engine.time_steps(1)
            pairs.append(taken[True] / taken[False])
        engine.clear()
        ratios.append(median(pairs))
    return ratios


@contextmanager
def _support_cut_out() -> Iterator[None]:
    """Remove the checks for adapters in the block; raises AttributeError if the code has moved."""

    def compute(packed: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        y = packed._linear(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])

    with (
        patch.object(engine_module, "grouped", list),
        patch.object(batch, "_segments", lambda *_: None),
        patch.object(PackedLinear, "compute", compute),
    ):
        yield


def frontend_time(setting: Setting) -> list[float]:
    """Measure the CPU time of the frontend per streamed token, in µs.

    From 32 concurrent streams; its idle CPU time is subtracted. Tokens are detokenized.
    """
    names = setting.names(ADAPTERS)
    figures = []
    with setting.serving(ADAPTERS, "--no-prefix-cache") as own:
        for seed in range(setting.repeats):
            requests = setting.requests("distinct", names, CONCURRENCY, seed)
            load.touch(own.target, requests)
            before = _cpu_seconds(own)
            time.sleep(IDLE_SECONDS)
            idle = (_cpu_seconds(own) - before) / IDLE_SECONDS
            before, begin = _cpu_seconds(own), time.perf_counter()
            report = load.run(own.target, requests, CONCURRENCY)
            seconds = time.perf_counter() - begin
            spent = _cpu_seconds(own) - before - idle * seconds
            figures.append(1e6 * spent / report.output_tokens)
    return figures


def memory(setting: Setting) -> list[float]:
    """Measure the peak memory of both processes above weights, KV and adapters, in MiB.

    The sum of the two peaks, minus the base's weights in float32, all KV blocks (fewer than the
    requests fill one after the other, since blocks stay cached), and the adapters that both tiers
    hold at the end.
    """
    names = setting.names(ADAPTERS)
    figures = []
    for seed in range(setting.repeats):
        requests = setting.requests("distinct", names, CONCURRENCY, seed)
        tokens = sum(len(request.prompt) + request.max_tokens for request in requests)
        kv_bytes = int(KV_SHARE * tokens) * setting.shape.kv_bytes
        with setting.serving(ADAPTERS, "--kv-memory", str(kv_bytes)) as own:
            load.run(own.target, requests, CONCURRENCY)
            peak = sum(_peak_bytes(process.pid) for process in own.processes())
            adapters = sum(
                own.metric(f'loramux_adapter_bytes{{tier="{tier}"}}') for tier in ("host", "device")
            )
        figures.append((peak - _weight_bytes(setting.base) - kv_bytes - adapters) / (1 << 20))
    return figures


def _cpu_seconds(own: server.Running) -> float:
    """Return the CPU time of the frontend so far, without its children."""
    times = own.processes()[0].cpu_times()
    return float(times.user + times.system)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (peak,) = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(peak[1]) << 10


def _weight_bytes(base: Path) -> int:
    return sum(path.stat().st_size for path in base.glob("*.safetensors"))
