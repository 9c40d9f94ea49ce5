"""Each GPU kernel compared with the bytes that it has to move, and the assumptions of the design.

`matmul`: the four matmuls of a layer with adapter rows appended to their weights: is their cost
that of their bytes? `launch`: the cost of an empty kernel in a graph. `probe`: features of this
torch and Triton. `attention`, `kernels` and `draws`: ours compared with floors, at the bandwidth of
a copy measured in the same run.

    python -m benchmarks.gpu.kernels --output result.json
"""

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import triton.language as tl
import typer

from benchmarks.fixture import SHAPES, Shape
from benchmarks.gpu import device as on
from benchmarks.gpu.operands import LoraOperands, attention_calls, draw_calls, groups, lora_calls
from benchmarks.gpu.record import Record
from loramux_server.kernels.gpu.draw import DEFAULT
from loramux_server.kernels.gpu.plan import Plan


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    experiment: str
    what: str
    microseconds: float
    floor_microseconds: float | None = None
    """Time to move the bytes at the bandwidth of a copy."""

    @property
    def ratio(self) -> float | None:
        """Measured time ÷ floor."""
        floor = self.floor_microseconds
        return self.microseconds / floor if floor else None


def main(
    shape: Annotated[str, typer.Option(help=f"Layers of: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    batch: Annotated[list[int] | None, typer.Option(help="Tokens of a step.")] = None,
    rows: Annotated[
        list[int] | None, typer.Option(help="Rank rows appended to the weights.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of each adapter.")] = 16,
    context: Annotated[list[int] | None, typer.Option(help="Context length in tokens.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Run all experiments and print results as they arrive; exit with 1 if one fails."""
    chosen, device = SHAPES[shape], on.choose()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batches = batch or [1, 8, 32, 64, 128]
    rate = on.bandwidth(device)
    print(f"copy: {rate / 1e12:.2f} TB/s", flush=True)
    found: list[dict[str, Any]] = []
    parts = {
        "matmul": _matmuls(
            chosen, device, dtype, batches, rows or [0, 128, 256, 512, 1024, 2048], rate
        ),
        "launch": _launches(device),
        "attention": _attention(chosen, device, dtype, batches, context or [1024, 8192], rate),
        "kernels": _kernels(chosen, device, dtype, batches, rank, rate),
        "draws": _draws(chosen, device, batches, rate),
    }
    record = Record(
        output,
        list(parts),
        command="python -m benchmarks.gpu.kernels",
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        copy_bytes_per_second=rate,
        probe=_probe(),
        rows=found,
        machine=on.describe(device),
    )
    for name, measured in parts.items():
        with record.part(name):
            for row in measured:
                found.append(asdict(row) | {"ratio": row.ratio})
                print(_line(row), flush=True)
                record.write()
    if record.has_failed:
        raise SystemExit(1)


def _line(row: Row) -> str:
    floor = row.floor_microseconds
    beside = f"  floor {floor:9.1f}  ratio {row.ratio:5.2f}" if floor else ""
    return f"{row.experiment:10} {row.what:44} {row.microseconds:9.1f} µs{beside}"


def _matmuls(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    batches: list[int],
    rows: list[int],
    rate: float,
) -> Iterator[Row]:
    for name, (width, outputs) in groups(shape).items():
        most = sum(outputs) + len(outputs) * max(rows)
        count = on.copies_needed(device, sum(outputs) * width * dtype.itemsize)
        weights = [torch.randn(most, width, dtype=dtype, device=device) for _ in range(count)]
        for tokens, num_rows in itertools.product(batches, rows):
            x_TK = torch.randn(tokens, width, dtype=dtype, device=device)
            end = sum(outputs) + len(outputs) * num_rows
            calls = [partial(torch.nn.functional.linear, x_TK, weight[:end]) for weight in weights]
            taken = on.seconds(device, calls)
            moved = (end * width + tokens * (width + end)) * dtype.itemsize
            yield Row("matmul", f"{name} M={tokens} P={num_rows}", 1e6 * taken, 1e6 * moved / rate)


@triton.jit  # type: ignore[untyped-decorator]
def _empty(p_x: tl.tensor) -> None:
    pass


def _launches(device: torch.device) -> Iterator[Row]:
    memory = torch.zeros(1, device=device)
    taken = on.seconds(device, [lambda: _empty[(1,)](memory)] * 100)
    yield Row("launch", "an empty kernel, in a graph of 100", 1e6 * taken)


def _attention(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    batches: list[int],
    contexts: list[int],
    rate: float,
) -> Iterator[Row]:
    for tokens, context in itertools.product(batches, contexts):
        calls, moved = attention_calls(shape, device, dtype, tokens, context, Plan.of(device))
        what = f"decode B={tokens} context={context}"
        taken = on.seconds_apart(device, calls)
        yield Row("attention", what, 1e6 * taken, 1e6 * moved / rate)


def _kernels(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    batches: list[int],
    rank: int,
    rate: float,
) -> Iterator[Row]:
    for name, (width, outputs) in groups(shape).items():
        for tokens, adapters in ((t, n) for t in batches for n in sorted({1, t})):
            operands = LoraOperands.make(width, outputs, tokens, [rank] * adapters, device, dtype)
            found = lora_calls(name, shape, operands, Plan.of(device))
            for kernel, (calls, moved) in found.items():
                what = f"{kernel} of {name} M={tokens}, {adapters} of rank {rank}"
                taken = on.seconds_apart(device, calls)
                yield Row("kernels", what, 1e6 * taken, 1e6 * moved / rate)


def _draws(shape: Shape, device: torch.device, batches: list[int], rate: float) -> Iterator[Row]:
    ways = {"by sorting": None, "by searching": Plan.of(device).draw or DEFAULT}
    for tokens, (way, blocks) in itertools.product(batches, ways.items()):
        calls, moved = draw_calls(shape, device, tokens, replace(Plan.of(device), draw=blocks))
        taken = on.seconds_apart(device, calls)
        yield Row("draws", f"B={tokens} top-p {way}", 1e6 * taken, 1e6 * moved / rate)


def _probe() -> dict[str, object]:
    """Return which useful features the installed torch and Triton have."""
    found: dict[str, object] = {"launch_pdl": hasattr(tl.extra.cuda, "gdc_wait")}
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return found | {"varlen_attn": None}
    return found | {"varlen_attn": list(inspect.signature(varlen_attn).parameters)}


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
