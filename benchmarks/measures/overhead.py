"""What serving costs beside the model: unused LoRA support, the frontend's time, memory."""

import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import load, server
from benchmarks.local_engine import LocalEngine
from benchmarks.setting import AdapterSet, Setting
from loramux_server.engine.messages import EngineConfig
from loramux_server.models.packed_linear import PackedLinear

ADAPTERS = AdapterSet(32)
BATCH, CONTEXT, STEPS = 8, 144, 100
CONCURRENCY = 32
IDLE_SECONDS = 2.0
KV_SHARE = 0.75


class BareLinear(PackedLinear):
    """A group of layers without the branch for adapters."""

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of all layers side by side."""
        y = self._linear(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])


def unused_support(setting: Setting) -> list[float]:
    """Measure the speed of base-only steps with adapters supported, ÷ with the branch cut out.

    Two engines in this process take turns, one decode step each.
    """
    engines = [
        LocalEngine(setting.base, EngineConfig(model="", kv_memory=1 << 30, max_running=BATCH))
        for _ in range(2)
    ]
    for group in engines[1].model.groups:
        group.__class__ = BareLinear
    for engine in engines:
        engine.fill(BATCH, [], CONTEXT)
        engine.time_steps(3)
    ratios = []
    for _ in range(setting.repeats):
        pairs = [[engine.time_steps(1)[0] for engine in engines] for _ in range(STEPS)]
        supported, bare = (median(times) for times in zip(*pairs, strict=True))
        ratios.append(bare / supported)
    return ratios


def frontend_time(setting: Setting) -> list[float]:
    """Measure the processor time of the frontend for a streamed token, in µs.

    From 32 streams at once; what it takes when idle is subtracted. Tokens become text on the way.
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

    The sum of the two peaks, less: the base's weights in float32; all KV blocks, which are fewer
    than the requests fill, one after the other, since blocks are remembered; and what both tiers
    hold of adapters at the end.
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
    """Return the processor time of the frontend so far, its children left out."""
    times = own.processes()[0].cpu_times()
    return float(times.user + times.system)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (peak,) = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(peak[1]) << 10


def _weight_bytes(base: Path) -> int:
    return sum(path.stat().st_size for path in base.glob("*.safetensors"))
