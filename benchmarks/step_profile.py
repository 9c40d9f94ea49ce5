"""Profile of a step by operation.

torch's profiler sees its own operators; ours are annotated here, and the loops of a program are
started one by one. The remaining time is Python and waiting.

    python -m benchmarks.step_profile --batch 32 --rank 16
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.fixture import SHAPES, make_adapters
from benchmarks.local_engine import LocalEngine, fixture_base, packaged
from loramux_server.engine import operations
from loramux_server.kernels.backend import Backend
from loramux_server.kernels.cpu.program import Program
from loramux_server.wire.engine_config import EngineConfig


def main(
    batch: Annotated[int, typer.Option(help="Requests in the batch.")] = 32,
    rank: Annotated[
        list[int] | None, typer.Option(help="Ranks, cycled through; none: base only.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens before the first step.")] = 144,
    prefill: Annotated[bool, typer.Option(help="Profile prefill instead of decode.")] = False,
    steps: Annotated[int, typer.Option(help="Steps to take.")] = 8,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Operations to show.")] = 24,
) -> None:
    """Print the time of a step and of its operations."""
    _mark_kernels()
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        adapters = []
        if rank:
            make_adapters(folder / "adapters", SHAPES[shape], rank, batch)
            adapters = packaged(folder / "adapters")
        base = fixture_base(folder, SHAPES[shape])
        engine = LocalEngine(
            base, EngineConfig(model="", max_running=batch, adapter_memory=4 << 30)
        )
        engine.fill(batch, adapters, context)
        seconds = engine.time_steps(steps)
        print(f"decode: median of {steps} steps {1e3 * median(seconds):.1f} ms without profiler")
        if prefill:
            engine.clear()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            if prefill:
                engine.fill(batch, adapters, context)
            else:
                engine.time_steps(steps)
    averages = profiler.key_averages()
    print(averages.table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40))


def _mark_kernels() -> None:
    """Annotate our own operations for the profiler."""
    run, choose = Program.run, operations.choose_backend  # type: ignore[attr-defined]

    def run_marked(program: Program, first: int = 0, last: int | None = None) -> None:
        for index, name in list(enumerate(program.names))[first:last]:
            with record_function(f"loramux::{name}"):
                run(program, index, index + 1)

    def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:  # noqa: ANN401
            with record_function(f"loramux::{name}"):
                return call(*arguments)

        return run

    def choose_marked(*arguments: Any, **options: Any) -> Backend:  # noqa: ANN401
        chosen = choose(*arguments, **options)
        return replace(
            chosen,
            add_lora=marked("add_lora", chosen.add_lora),
            paged_attention=marked("paged_attention", chosen.paged_attention),
        )

    Program.run = run_marked  # type: ignore[method-assign, assignment]
    operations.choose_backend = choose_marked  # type: ignore[attr-defined]


if __name__ == "__main__":
    typer.run(main)
