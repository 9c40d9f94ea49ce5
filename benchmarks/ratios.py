"""The cost of adapters, in one table: each measure with its goal and its stretch goal.

On random weights of a real shape, in rounds that alternate between the two sides of a ratio;
medians of `--repeats` rounds. `unused` times an engine in this process. For all others a real
server answers streamed requests over gRPC: prompts of 32 to 256 tokens and 64 output tokens, the
same on both sides; for latencies see `benchmarks/measures/latency.py`.

`many` has adapters of rank 1 on q_proj and v_proj, because 2,000 of rank 16 on all projections
would be 39 GB: it measures the effect of their number; `distinct` and `mixed` measure that of their
weights. All have different weights. A round uses some hundred of them at most, all loaded before.

    python -m benchmarks.ratios --only cold --only memory
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks import machine, peers
from benchmarks.fixture import SHAPES, make_base
from benchmarks.measures import latency, overhead, throughput
from benchmarks.setting import Setting


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure and its goals."""

    what: str
    take: Callable[[Setting], list[float]]
    """Returns one value per round."""
    bar: float
    stretch: float | None = None
    is_limit: bool = False
    """Whether the value should be at most the goal, rather than at least."""


def measures(registered: int, loads: int) -> dict[str, Measure]:
    """Return all measures by their names in `--only`."""
    return {
        "distinct": Measure(
            "32 adapters of rank 16, 32 at once ÷ base only", throughput.distinct, 0.75, 0.9
        ),
        "mixed": Measure(
            "32 adapters of ranks 8 to 64, 32 at once ÷ base only", throughput.mixed, 0.65, 0.8
        ),
        "dora": Measure(
            "32 adapters of DoRA, rank 16, 32 at once ÷ of LoRA", throughput.dora, 0.9, 0.98
        ),
        "tokens": Measure(
            "32 adapters with trained tokens, 32 at once ÷ without", throughput.tokens, 0.9, 0.98
        ),
        "saved": Measure(
            "one of 32 with saved embeddings, output ÷ none", throughput.saved, 0.85, 0.95
        ),
        "one-x1": Measure("one adapter, alone ÷ base only", throughput.one(1), 0.93, 0.97),
        "one-x8": Measure("one adapter, 8 at once ÷ base only", throughput.one(8), 0.93, 0.97),
        "one-x32": Measure("one adapter, 32 at once ÷ base only", throughput.one(32), 0.93, 0.97),
        "unused": Measure(
            "no adapter in use ÷ support cut out", overhead.unused_support, 0.995
        ),
        "many": Measure(
            f"{registered:,} adapters, zipf ÷ {throughput.FEW}", throughput.many(registered), 0.97
        ),
        "cold": Measure(
            "first token, adapter on disk - warm, ms",
            latency.cold(loads, on_disk=True), 40, is_limit=True,
        ),
        "cold-cached": Measure(
            "the same, its file in the page cache, ms",
            latency.cold(loads, on_disk=False), 40, is_limit=True,
        ),
        "loads": Measure(
            f"inter-token p99 while {loads} adapters load ÷ without",
            latency.during_loads(loads), 1.2, 1.05, is_limit=True,
        ),
        "prefix": Measure(
            "first token, shared prompt, prefix cache ÷ without",
            latency.shared_prompt, 0.2, is_limit=True,
        ),
        "frontend": Measure(
            "processor time of the frontend per token, µs",
            overhead.frontend_time, 60, 30, is_limit=True,
        ),
        "memory": Measure(
            "peak memory above weights, KV and adapters, MiB",
            overhead.memory, 400, is_limit=True,
        ),
    }  # fmt: skip


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(measures(0, 0))}; all if left out.")
    ] = None,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    repeats: Annotated[int, typer.Option(help="Rounds of each measure; medians are reported.")] = 3,
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 64,
    per_slot: Annotated[
        int, typer.Option(help="Requests per run, divided by the concurrency.")
    ] = 2,
    registered: Annotated[int, typer.Option(help="Number of adapters in `many`.")] = 2000,
    loads: Annotated[
        int, typer.Option(min=1, max=31, help="Adapters to load in `cold` and `loads`.")
    ] = 20,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Measure the cost of adapters."""
    known = measures(registered, loads)
    chosen = only or list(known)
    if unknown := set(chosen) - known.keys():
        raise typer.BadParameter(f"--only {', '.join(unknown)}: known are {', '.join(known)}")
    results: dict[str, object] = {}
    record = {
        "command": "python -m benchmarks.ratios",
        "shape": shape,
        "output_tokens": tokens,
        "requests_per_slot": per_slot,
        "measures": results,
        "machine": machine.describe(),
    }
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = make_base(folder / "base", SHAPES[shape])
        # With one, the frontend detokenizes, as it does for real models.
        peers.write_tokenizer(base, SHAPES[shape].vocab)
        setting = Setting(
            folder=folder, base=base, shape=SHAPES[shape], tokens=tokens, per_slot=per_slot,
            repeats=repeats,
        )  # fmt: skip
        print(f"{'measure':12}{'':54}{'measured':>10}{'bar':>10}{'stretch':>10}   rounds")
        for key in chosen:
            measure = known[key]
            rounds = measure.take(setting)
            _show(key, measure, rounds)
            results[key] = {
                "what": measure.what,
                "measured": median(rounds),
                "rounds": rounds,
                "bar": measure.bar,
                "stretch": measure.stretch,
                "is_limit": measure.is_limit,
            }
            if output:
                output.write_text(
                    json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )


def _show(key: str, measure: Measure, rounds: list[float]) -> None:
    bound = "<=" if measure.is_limit else ">="
    stretch = "" if measure.stretch is None else f"{bound} {measure.stretch:g}"
    print(
        f"{key:12}{measure.what:54}{median(rounds):10.4g}{f'{bound} {measure.bar:g}':>10}"
        f"{stretch:>10}   {' '.join(f'{value:.4g}' for value in rounds)}",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(main)
