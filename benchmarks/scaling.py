"""Throughput over the number of adapters, concurrent requests, rank and context length.

A real server answers a closed loop of streamed requests over gRPC. Each round sends requests for
adapters and, with the same prompts, for the base alone; ratios are taken within a round, and
medians over rounds.

    adapters      registered ones, with zipf and uniform popularity, 32 concurrent requests
    concurrency   concurrent requests, for 32 adapters of rank 16 in turn
    rank          of 32 adapters in turn, 32 concurrent requests
    context       tokens of each prompt, for the same adapters of rank 16, 8 concurrent requests

Adapters change all seven projections and are float32, except for the first axis: 2,000 of rank 16
on SmolLM2-135M are 39 GB. There they have rank 1 on q_proj and v_proj, 0.2 MB each, all with
different weights. So that axis shows the effect of their number; the rank axis shows that of their
size. All are registered and on disk; those that a round uses, some dozens, are loaded before it.
The largest set, of rank 128, needs 5 GB of memory and twice that on disk; each set is deleted once
it is measured.

    python -m benchmarks.scaling --axis rank --axis context --plot scaling.png
"""

import csv
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks import chart, load, machine
from benchmarks.fixture import SHAPES, make_base
from benchmarks.setting import AdapterSet, Setting, small_adapters

AXES = {
    "adapters": "registered adapters",
    "concurrency": "requests at once",
    "rank": "rank",
    "context": "prompt tokens",
}
"""Axis -> its label."""
DISTINCT = 32
CONCURRENCY = 32
CONTEXT_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a run."""

    popularity: str
    concurrency: int
    prompt: str | None = None

    def over_base(self) -> "Load":
        """Return the same requests without adapters."""
        return replace(self, popularity="base")


@dataclass(frozen=True, slots=True)
class Point:
    """A point on an axis, and its workload."""

    axis: str
    value: int
    adapters: AdapterSet
    load: Load


@dataclass(frozen=True, slots=True)
class Row:
    """The results at a point: medians, and every round."""

    axis: str
    series: str
    value: int
    tokens_per_second: float
    base_tokens_per_second: float
    ratio: float
    rounds: list[float]
    base_rounds: list[float]


def main(
    axis: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(AXES)}; or all.")] = None,
    adapters: Annotated[list[int] | None, typer.Option(help="Values of that axis.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="Values of that axis.")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="Values of that axis.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Values of that axis.")] = None,
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 64,
    per_slot: Annotated[
        int, typer.Option(help="Requests per run, divided by the concurrency.")
    ] = 2,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 3,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    table: Annotated[Path | None, typer.Option("--csv", help="File for the table.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a plot, as PNG.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Measure output tokens per second along each axis."""
    values = {
        "adapters": adapters or [1, 5, 50, 500, 2000],
        "concurrency": concurrency or [1, 2, 4, 8, 16, 32, 64],
        "rank": rank or [8, 16, 32, 64, 128],
        "context": context or [32, 128, 512, 1024],
    }
    if unknown := set(axis or ()) - AXES.keys():
        raise typer.BadParameter(f"--axis {', '.join(unknown)}: known are {', '.join(AXES)}")
    points = [
        point for name in AXES if name in (axis or AXES) for point in _points(name, values[name])
    ]
    if plot:
        chart.matplotlib()  # fail before the measurement if it is missing
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        setting = Setting(
            folder=folder, base=make_base(folder / "base", SHAPES[shape]), shape=SHAPES[shape],
            tokens=tokens, per_slot=per_slot, repeats=repeats,
        )  # fmt: skip
        print(f"{'axis':14}{'value':>6}  {'popularity':12}{'tokens/s':>10}{'base':>10}{'ratio':>8}")
        for chosen in dict.fromkeys(point.adapters for point in points):
            found = _measure(setting, chosen, [p for p in points if p.adapters == chosen])
            for row in found:
                print(
                    f"{row.axis:14}{row.value:6}  {row.series:12}{row.tokens_per_second:10.1f}"
                    f"{row.base_tokens_per_second:10.1f}{row.ratio:8.2f}",
                    flush=True,
                )
            rows += found
    order = list(AXES)
    rows.sort(key=lambda row: (order.index(row.axis), row.series, row.value))
    if table:
        _write_table(table, rows)
    if plot:
        panels = {
            label: [row for row in rows if row.axis == name]
            for name, label in AXES.items()
            if any(row.axis == name for row in rows)
        }
        chart.write_chart(plot, panels)
    if output:
        record = {
            "command": "python -m benchmarks.scaling",
            "shape": shape,
            "output_tokens": tokens,
            "requests_per_slot": per_slot,
            "rows": [asdict(row) for row in rows],
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _points(axis: str, values: Sequence[int]) -> list[Point]:
    distinct = Load("distinct", CONCURRENCY)
    match axis:
        case "adapters":
            return [
                Point(axis, value, small_adapters(value), Load(popularity, CONCURRENCY))
                for value in values
                for popularity in ("zipf", "uniform")
            ]
        case "concurrency":
            return [
                Point(axis, value, AdapterSet(DISTINCT), Load("distinct", value))
                for value in values
            ]
        case "rank":
            return [
                Point(axis, value, AdapterSet(DISTINCT, (value,)), distinct) for value in values
            ]
    return [
        Point(axis, value, AdapterSet(DISTINCT), Load("distinct", CONTEXT_CONCURRENCY, str(value)))
        for value in values
    ]


def _measure(setting: Setting, adapters: AdapterSet, points: Sequence[Point]) -> list[Row]:
    """Measure the points of one set of adapters on one server, and delete the set."""
    names = setting.names(adapters)
    loads = dict.fromkeys(run for point in points for run in (point.load.over_base(), point.load))
    speeds: dict[Load, list[float]] = {run: [] for run in loads}
    most = max(run.concurrency for run in loads)
    with setting.serving(adapters, "--no-prefix-cache", "--max-running", str(most)) as server:
        for seed in range(setting.repeats):
            for run, found in speeds.items():
                requests = setting.requests(
                    run.popularity, names, run.concurrency, seed, run.prompt
                )
                load.touch(server.target, requests)
                report = load.run(server.target, requests, run.concurrency)
                found.append(report.output_tokens_per_second)
    shutil.rmtree(setting.folder_of(adapters).parent)
    return [_row(point, speeds[point.load], speeds[point.load.over_base()]) for point in points]


def _row(point: Point, rounds: list[float], base_rounds: list[float]) -> Row:
    return Row(
        axis=point.axis,
        series=point.load.popularity,
        value=point.value,
        tokens_per_second=median(rounds),
        base_tokens_per_second=median(base_rounds),
        ratio=median(own / base for own, base in zip(rounds, base_rounds, strict=True)),
        rounds=rounds,
        base_rounds=base_rounds,
    )


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    columns = ("axis", "series", "value", "tokens_per_second", "base_tokens_per_second", "ratio")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    typer.run(main)
