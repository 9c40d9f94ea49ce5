"""The engine on a GPU against its floors and goals, and against PEFT and transformers.

Models of real shapes with seeded random weights made on the device; adapters that differ in their
bytes, all of them loaded from files. Steps are timed in this process, below gRPC: what a frontend
costs is the business of `benchmarks.frontend`.

A floor is what the bytes of a step take at the bandwidth of a copy, measured in the same run:
weights once, keys and values of every context, and the A and B rows of each distinct adapter.

    python -m benchmarks.gpu.end_to_end --output result.json --plot result.png
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import chart
from benchmarks.fixture import SHAPES
from benchmarks.gpu import device as on
from benchmarks.gpu import others
from benchmarks.gpu.goals import Goal, Goals
from benchmarks.gpu.served import Served

_PLOT_ADAPTERS = (1, 2, 4, 8, 16, 32)
_BASE = "loramux, base only"
_SHOWN_KERNELS = 14


def main(
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    context: Annotated[int, typer.Option(help="Tokens of each context.")] = 1024,
    batch: Annotated[int, typer.Option(help="Requests of most goals.")] = 32,
    large_batch: Annotated[int, typer.Option(help="Requests of goal 6.")] = 64,
    large_rank: Annotated[list[int] | None, typer.Option(help="Of 64 and 16, for goal 6.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of goal 9; at most 2048.", max=2048)] = 2048,
    steps: Annotated[int, typer.Option(help="Steps of each measurement; the median counts.")] = 30,
    only_own: Annotated[bool, typer.Option(help="Leave out PEFT and transformers.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture of the scaling.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the table of goals: measured, floor, goal."""
    if plot:
        chart.matplotlib()
    chosen, device = SHAPES[shape], on.choose()
    rate = on.bandwidth(device)
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        ranks = large_rank or [64, 16]
        most = max(ranks)
        served = Served(chosen, device, Path(name), large_batch, context, steps, most)
        goals = Goals(served, rate, batch, large_batch, ranks, prompt)
        found = []
        for goal in goals.measure():
            found.append(goal)
            print(_line(goal), flush=True)
        for name, kernels in goals.kernels.items():
            for kernel in kernels[:_SHOWN_KERNELS]:
                print(
                    f"{name:20} {kernel.launches:6.1f} x {kernel.microseconds:9.1f} µs "
                    f"{kernel.name[:80]}"
                )
        series = {"loramux": _scaling(served, batch)}
        alone = batch / served.step(batch, None, 0)
        series[_BASE] = [(count, alone) for count, _ in series["loramux"]]
        served.close()
        record: dict[str, Any] = {
            "command": "python -m benchmarks.gpu.end_to_end",
            "shape": shape,
            "context": context,
            "batch": batch,
            "prompt": prompt,
            "copy_bytes_per_second": rate,
            "goals": [asdict(goal) for goal in found],
            "kernels": {
                name: [asdict(kernel) for kernel in kernels]
                for name, kernels in goals.kernels.items()
            },
            "tokens_per_second_by_adapters": series,
            "continuous_batching": None,
            "machine": on.describe(device),
        }
        _write(record, output)
        if not only_own:
            series["PEFT"] = others.peft(chosen, device, served.folders(16), batch, context)
            _write(record, output)
            found_there = others.continuous_batching(chosen, device, batch, context)
            record["continuous_batching"] = found_there
            print(f"transformers' continuous batching, base: {found_there}", flush=True)
            _write(record, output)
    for label, points in series.items():
        print(f"{label:20}", " ".join(f"{n}: {rate:.0f}" for n, rate in points), flush=True)
    if plot:
        _draw(plot, series)


def _write(record: dict[str, Any], output: Path | None) -> None:
    """Keep what there is by now: a peer may take longer than there is time for."""
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _scaling(served: Served, batch: int) -> list[tuple[int, float]]:
    return [
        (count, batch / served.step(batch, 16, count)) for count in _PLOT_ADAPTERS if count <= batch
    ]


def _line(goal: Goal) -> str:
    floor = f"{goal.floor:8.3f}" if goal.floor is not None else " " * 8
    sign = "<=" if goal.is_limit else ">="
    return f"{goal.number:2} {goal.what:58} {goal.measured:10.3f} {floor}  {sign} {goal.goal:g}"


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the picture."""

    series: str
    value: int
    tokens_per_second: float
    base_tokens_per_second: float


def _draw(path: Path, series: dict[str, list[tuple[int, float]]]) -> None:
    base = dict(series[_BASE])
    rows = [
        Point(label, count, rate, base[count])
        for label, points in series.items()
        if label != _BASE
        for count, rate in points
    ]
    chart.write_chart(path, {"distinct adapters of rank 16": rows})


if __name__ == "__main__":
    typer.run(main)
