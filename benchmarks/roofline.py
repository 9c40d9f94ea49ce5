"""Time of a decode step relative to the roofline of the machine.

A step has to read the weights of the base once and to do two operations per weight and request. The
floor is the longer of the two, at the measured bandwidth and the measured rate of a large matmul,
plus the time to read the adapters and the keys and values of its requests, which overlap with no
matmul. Each round measures the machine again, because it drifts.

    python -m benchmarks.roofline
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks import machine
from benchmarks.fixture import SHAPES, Shape, make_adapters
from benchmarks.local_engine import LocalEngine, fixture_base, packaged
from loramux_server.kernels.cpu.linear import make_linear_cpu
from loramux_server.kernels.linear import Linear
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.engine_config import EngineConfig

CONTEXT = 144


@dataclass(frozen=True, slots=True)
class Rates:
    """The peak rates of the machine."""

    bytes_per_second: float
    operations_per_second: float


@dataclass(frozen=True, slots=True)
class Row:
    """The results for one kind of step."""

    batch: int
    adapters: str
    floor_ms: float
    step_ms: float
    ratio: float


def main(
    batch: Annotated[list[int] | None, typer.Option(help="Requests in the batch.")] = None,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 5,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print floor, step and ratio for base-only batches and for distinct adapters."""
    chosen = SHAPES[shape]
    levels = batch or [1, 8, 32]
    kinds = {"base": None, "r16": [16], "r8-64": [8, 16, 32, 64]}
    rows = []
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = fixture_base(folder, chosen)
        engine = LocalEngine(base, EngineConfig(model="", adapter_memory=4 << 30))
        for kind, ranks in kinds.items():
            sources: list[AdapterSource] = []
            if ranks:
                make_adapters(folder / kind, chosen, ranks, max(levels))
                sources = packaged(folder / kind)
            for count in levels:
                engine.fill(count, sources, CONTEXT)
                engine.time_steps(3)
                floors, steps = [], []
                for _ in range(repeats):
                    rates = measure()
                    floors.append(floor(chosen, count, sources[:count], rates))
                    steps.append(median(engine.time_steps(5)))
                engine.clear()
                ratio = median(step / low for step, low in zip(steps, floors, strict=True))
                row = Row(count, kind, 1e3 * median(floors), 1e3 * median(steps), ratio)
                rows.append(row)
                print(
                    f"batch {row.batch:3} {row.adapters:6} floor {row.floor_ms:7.1f} ms  "
                    f"step {row.step_ms:7.1f} ms  ratio {row.ratio:.2f}",
                    flush=True,
                )
    if output:
        record = {
            "command": "python -m benchmarks.roofline",
            "shape": shape,
            "context": CONTEXT,
            "rows": [asdict(row) for row in rows],
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure() -> Rates:
    """Return the memory bandwidth and the rate of a large matmul.

    Each is the better of two: of torch's own operations, and of a layer as the engine computes it,
    for one token with weights larger than any cache, and for many tokens.
    """
    far, wide, square, layer = _samples()
    one = torch.ones(1, 1024)
    wide_bytes = far.nbytes // 2
    read = max(far.nbytes / _best(far.sum), wide_bytes / _best(lambda: wide(one)))
    product = min(_best(lambda: square @ square), _best(lambda: layer(square)))
    return Rates(read, 2 * 1024**3 / product)


@cache
def _samples() -> tuple[torch.Tensor, Linear, torch.Tensor, Linear]:
    """Return a large and a small matrix, each also as a layer."""
    far, square = torch.ones(64 << 20), torch.ones(1024, 1024)
    wide = make_linear_cpu(far.view(-1, 1024), None, Quantization.BFLOAT16)
    return far, wide, square, make_linear_cpu(square, None)


def floor(shape: Shape, batch: int, adapters: list[AdapterSource], rates: Rates) -> float:
    """Return the minimum seconds of a decode step of `batch` requests."""
    layer = sum(inputs * outputs for inputs, outputs in shape.features().values())
    weights = shape.layers * layer + shape.vocab * shape.hidden
    other_bytes = batch * CONTEXT * shape.kv_bytes + sum(adapter.num_bytes for adapter in adapters)
    base = max(
        weights * 4 / rates.bytes_per_second, 2 * weights * batch / rates.operations_per_second
    )
    return base + other_bytes / rates.bytes_per_second


def _best(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    typer.run(main)
