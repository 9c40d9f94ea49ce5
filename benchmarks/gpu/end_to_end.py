"""The engine on a GPU compared with its floors and goals, and with PEFT and transformers.

Models of real shapes with seeded random weights generated on the device; adapters with different
bytes, all loaded from files. Steps are timed in this process, below gRPC; for the cost of a
frontend see `benchmarks.frontend`.

A floor is the time to read the bytes of a step at the bandwidth of a copy, measured in the same
run: weights once, keys and values of every context, and the A and B rows of each distinct adapter.

Goals are measured in order of importance. Each is written to the file as soon as it is measured,
and a failure does not stop the others. Adapters of rank 64 fill a whole device: `--large-rank 64
--only 6`.

    python -m benchmarks.gpu.end_to_end --output result.json --plot result.png
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import chart
from benchmarks.fixture import SHAPES
from benchmarks.gpu import device as on
from benchmarks.gpu import others
from benchmarks.gpu.adapter_files import AdapterFiles
from benchmarks.gpu.goals import LARGE, Figure, Goal, Goals, Sizes
from benchmarks.gpu.record import Record
from benchmarks.gpu.served import dtype_of

_PLOT_ADAPTERS = (1, 2, 4, 8, 16, 32)
_BASE = "loramux, base only"
_SHOWN_KERNELS = 14
_SCALING, _PEFT, _BATCHING = "scaling", "peft", "batching"
Series = dict[str, list[tuple[int, float]]]
"""Name -> (number of adapters, output tokens per second)."""


def main(
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    context: Annotated[int, typer.Option(help="Context length in tokens.")] = 1024,
    batch: Annotated[int, typer.Option(help="Requests of most goals.")] = 32,
    large_batch: Annotated[int, typer.Option(help="Requests of goal 6.")] = 64,
    large_rank: Annotated[int, typer.Option(help="16 or 64, for goal 6.")] = 16,
    prompt: Annotated[
        int, typer.Option(help="Prompt length of goal 9 in tokens; at most 2048.", max=2048)
    ] = 2048,
    steps: Annotated[int, typer.Option(help="Steps per measurement; medians are reported.")] = 30,
    only: Annotated[
        list[str] | None, typer.Option(help="Numbers of goals, scaling, peft, batching.")
    ] = None,
    only_own: Annotated[bool, typer.Option(help="Leave out PEFT and transformers.")] = False,
    plot: Annotated[Path | None, typer.Option(help="File for a plot of the scaling.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the table of goals: measured, floor, goal; exit with 1 if one could not be measured."""
    if plot:
        chart.matplotlib()
    if large_rank not in LARGE:
        raise typer.BadParameter(
            f"--large-rank {large_rank} is none of {', '.join(map(str, LARGE))}"
        )
    device = on.choose()
    sizes = Sizes(
        shape=SHAPES[shape], context=context, batch=batch, large_batch=large_batch,
        large_rank=large_rank, prompt=prompt, steps=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        files = AdapterFiles(Path(name), sizes.shape, dtype_of(device), device)
        goals = Goals(sizes, device, files)
        own = {str(goal.number): goal for goal in goals.all()}
        known = [*own, _SCALING, *([] if only_own else [_PEFT, _BATCHING])]
        if unknown := set(only or ()) - set(known):
            raise typer.BadParameter(f"--only {unknown.pop()} is none of {', '.join(known)}")
        chosen = [part for part in known if not only or part in only]
        series: Series = {}
        record = Record(
            output,
            chosen,
            command="python -m benchmarks.gpu.end_to_end",
            shape=shape,
            context=context,
            batch=batch,
            large_batch=large_batch,
            large_rank=large_rank,
            prompt=prompt,
            copy_bytes_per_second=goals.rate,
            tokens_per_second_by_adapters=series,
            machine=on.describe(device),
        )
        wanted = [own[part] for part in chosen if part in own]
        if wanted or _SCALING in chosen:
            _measure(goals, wanted, record, series if _SCALING in chosen else None)
        if _PEFT in chosen:
            with record.part(_PEFT):
                points = series["PEFT"] = []
                for point in others.peft(
                    sizes.shape, device, files.peft_folder(16), batch, context
                ):
                    points.append(point)
                    record.write()
        if _BATCHING in chosen:
            with record.part(_BATCHING):
                found = others.continuous_batching(sizes.shape, device, batch, context)
                record["continuous_batching"] = found
                print(f"transformers' continuous batching, base: {found}", flush=True)
    for label, points in series.items():
        print(f"{label:20}", " ".join(f"{n}: {rate:.0f}" for n, rate in points), flush=True)
    if plot and _BASE in series:
        _draw(plot, series)
    if record.has_failed:
        raise SystemExit(1)


def _measure(goals: Goals, wanted: list[Goal], record: Record, series: Series | None) -> None:
    """Measure this engine; with `series` also how it scales."""
    with record.part("model"):
        goals.prepare()
    if record.has_failed:
        return
    figures: list[dict[str, Any]] = []
    record["goals"] = figures
    for goal in wanted:
        with record.part(str(goal.number)):
            figure = goal.measured()
            figures.append(asdict(figure))
            print(_line(figure), flush=True)
        record["dora_adapters"] = goals.num_dora
        record["load_parts"] = goals.load_parts
        record["steps"] = [asdict(step) for step in goals.steps]
        record["kernels"] = {
            name: [asdict(kernel) for kernel in kernels] for name, kernels in goals.kernels.items()
        }
    for name, milliseconds in goals.load_parts.items():
        print(f"{'load':20} {milliseconds:10.3f} ms {name}")
    for name, kernels in goals.kernels.items():
        for kernel in kernels[:_SHOWN_KERNELS]:
            print(
                f"{name:20} {kernel.launches:6.1f} x {kernel.microseconds:9.1f} µs "
                f"{kernel.name[:80]}"
            )
    if series is not None:
        with record.part(_SCALING):
            _scale(goals, series)
        record["steps"] = [asdict(step) for step in goals.steps]
    goals.close()


def _scale(goals: Goals, series: Series) -> None:
    counts = [count for count in _PLOT_ADAPTERS if count <= goals.sizes.batch]
    series["loramux"] = [(count, goals.tokens_per_second(count)) for count in counts]
    alone = goals.tokens_per_second(0)
    series[_BASE] = [(count, alone) for count in counts]


def _line(goal: Figure) -> str:
    floor = f"{goal.floor:8.3f}" if goal.floor is not None else " " * 8
    sign = "<=" if goal.is_limit else ">="
    return f"{goal.number:2} {goal.what:58} {goal.measured:10.3f} {floor}  {sign} {goal.goal:g}"


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the plot."""

    series: str
    value: int
    tokens_per_second: float
    base_tokens_per_second: float


def _draw(path: Path, series: Series) -> None:
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
