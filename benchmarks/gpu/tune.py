"""Find how kernels are best cut on the device at hand, and write it to the package's plans.

Each kernel is tried in every way at the shapes of an 8B model: with tiles of each size, at several
batch sizes, with few adapters and with many. Kept is what takes least on average, relative to the
best that was found for each of these. Serving only reads the result.

    python -m benchmarks.gpu.tune --processes 8
"""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from triton.runtime.errors import OutOfResources

from benchmarks.fixture import SHAPES, Shape
from benchmarks.gpu import device as on
from benchmarks.gpu.operands import Calls, LoraOperands, attention_calls, groups, lora_calls
from benchmarks.gpu.record import Record, replace_file
from loramux_server.kernels import gpu
from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.plan import FILE, Plan, capability
from loramux_server.kernels.gpu.staged import PREFILL_TILE, SHARED_TILE, SINGLE_TILE

_ATTENTION = "decode_attention"
_CHOICES: dict[str, Mapping[str, Sequence[int]]] = {
    "silu_mul": {"n": (32, 64, 128, 256), "num_warps": (1, 2, 4, 8)},
    "residual_norm": {"k": (256, 512, 1024, 4096), "num_warps": (1, 2, 4, 8)},
    "rope_write": {"heads": (1, 2, 4), "num_warps": (1, 2, 4, 8)},
    _ATTENTION: {"context": (64, 128), "least_share": (64, 128, 256), "num_stages": (2, 3)},
    "expand": {"n": (64, 128, 256), "num_warps": (2, 4, 8)},
    "shrink": {"columns": (16, 64), "k": (64, 128), "num_stages": (3, 4)},
}
"""Those come first that take most of a decode step."""
_GROUP_OF = {
    "shrink": ("qkv", "down"),
    "expand": ("qkv", "down"),
    "rope_write": ("qkv",),
    "silu_mul": ("gate_up",),
    "residual_norm": ("o",),
}
"""Where each kernel is tried."""
_TILES = (SINGLE_TILE, SHARED_TILE, PREFILL_TILE)
_RANK = 16
_CONTEXTS = (1024, 4096)
Make = Callable[[Plan], Calls]


@dataclass(frozen=True, slots=True)
class Row:
    """How a kernel is best cut for tiles of one size."""

    kernel: str
    tile: int
    blocks: dict[str, int] | None
    microseconds: list[float]
    """At each size of a step."""
    before: list[float]
    """The same, as the kernel was cut before."""


def main(
    shape: Annotated[str, typer.Option(help=f"Layers of: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    batch: Annotated[list[int] | None, typer.Option(help="Tokens of a decode step.")] = None,
    chunk: Annotated[list[int] | None, typer.Option(help="Tokens of a prefill step.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(_CHOICES)}.")] = None,
    tile: Annotated[list[int] | None, typer.Option(help=f"Of {_TILES}.")] = None,
    processes: Annotated[int, typer.Option(help="Compile in so many first.")] = 0,
    compile_only: Annotated[bool, typer.Option("--compile-only", help="Measure nothing.")] = False,
    plans: Annotated[Path | None, typer.Option(help="File to change; the package's own.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for what was measured, JSON.")] = None,
) -> None:
    """Tune all kernels and print what changed. The plans have what is found as soon as it is."""
    chosen, device = SHAPES[shape], on.choose()
    path = plans or Path(str(gpu.__path__[0])) / FILE
    plan = Plan.of(device)
    batches, chunks = batch or [1, 8, 32, 64], chunk or [512, 2048]
    steps = Steps(chosen, device, batches, chunks)
    found = [
        (kernel, size)
        for kernel, size in itertools.product(only or _CHOICES, tile or _TILES)
        if _is_tiled(kernel, size)
    ]
    if compile_only:
        for kernel, size in found:
            for make, candidate in itertools.product(
                list(steps.of(kernel, size, plan)), _candidates(plan, kernel, size)
            ):
                _seconds(device, make, candidate, is_timed=False)
        return
    rows: list[dict[str, Any]] = []
    record = Record(
        output,
        [f"{kernel} {size}" for kernel, size in found],
        command="python -m benchmarks.gpu.tune",
        shape=shape,
        rows=rows,
        machine=on.describe(device),
    )
    if processes:
        with record.part("compile"):
            sizes = [f"--batch={n}" for n in batches] + [f"--chunk={n}" for n in chunks]
            _compile(found, [f"--shape={shape}", *sizes], processes)
    for kernel, size in found:
        with record.part(f"{kernel} {size}"):
            if makes := list(steps.of(kernel, size, plan)):
                plan, row = _tuned(plan, kernel, size, device, makes)
                rows.append(asdict(row))
                print(_line(row), flush=True)
                _keep(plan, path, capability(device))
    print(f"{capability(device)} is in {path}")
    if record.has_failed:
        raise SystemExit(1)


def _is_tiled(kernel: str, tile: int) -> bool:
    """Return whether `kernel` is cut for tiles of that size."""
    if kernel == _ATTENTION:
        return tile == SINGLE_TILE
    return kernel != "residual_norm" or tile != PREFILL_TILE  # there B is applied before


def _keep(plan: Plan, path: Path, device: str) -> None:
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[device] = asdict(plan)
    replace_file(path, json.dumps(entries, indent=1) + "\n")


def _compile(found: list[tuple[str, int]], arguments: list[str], processes: int) -> None:
    """Bring what is to be measured to Triton's cache: one core takes minutes for it."""
    command = [sys.executable, "-m", "benchmarks.gpu.tune", *arguments, "--compile-only"]

    def run(kernel: str, tile: int) -> int:
        return subprocess.run(
            [*command, f"--only={kernel}", f"--tile={tile}"], check=False
        ).returncode

    with ThreadPoolExecutor(processes) as pool:
        if any(pool.map(run, *zip(*found, strict=True))):
            raise SystemExit("a kernel could not be compiled; see above")


class Steps:
    """What kernels are tried on."""

    def __init__(
        self, shape: Shape, device: torch.device, batches: list[int], chunks: list[int]
    ) -> None:
        """Decode with `batches` requests, and prefill with prompts of `chunks` tokens."""
        self._shape = shape
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._batches, self._chunks = batches, chunks

    def of(self, kernel: str, tile: int, plan: Plan) -> Iterator[Make]:
        """Yield what makes calls of `kernel` out of a plan, for each step with such tiles."""
        shape, device, dtype = self._shape, self._device, self._dtype
        if kernel == _ATTENTION:
            for tokens, context in itertools.product(self._batches, _CONTEXTS):
                yield partial(attention_calls, shape, device, dtype, tokens, context)
            return
        for group, (tokens, chunk, adapters) in itertools.product(
            _GROUP_OF[kernel], self._sizes(tile)
        ):
            width, outputs = groups(shape)[group]
            of = LoraOperands.make(
                width, outputs, tokens, [_RANK] * adapters, device, dtype,
                chunk=chunk, planes=plan.cuts[tile].planes,
            )  # fmt: skip
            if of.staged.tiles.size == tile:
                yield partial(_calls_of, kernel, group, shape, of)

    def _sizes(self, tile: int) -> Iterator[tuple[int, int, int]]:
        """Yield (tokens, tokens of a request, adapters) of steps that have tiles of `tile`."""
        if tile == PREFILL_TILE:
            for tokens, adapters in itertools.product(self._chunks, (1, 4)):
                yield tokens, tokens // adapters, adapters
            return
        for tokens in self._batches:
            for adapters in {tokens} if tile == SINGLE_TILE else {1, max(1, tokens // 4)}:
                yield tokens, 1, adapters


def _calls_of(kernel: str, group: str, shape: Shape, of: LoraOperands, plan: Plan) -> Calls:
    return lora_calls(group, shape, of, plan)[kernel]


def _tuned(
    plan: Plan, kernel: str, tile: int, device: torch.device, makes: list[Make]
) -> tuple[Plan, Row]:
    """Return `plan` with the best way to cut `kernel` for tiles of one size."""
    candidates = [plan, *_candidates(plan, kernel, tile)]
    taken = [[_seconds(device, make, candidate) for make in makes] for candidate in candidates]
    least = [min(column) for column in zip(*taken, strict=True)]
    costs = [
        sum(found / best for found, best in zip(row, least, strict=True)) / len(least)
        for row in taken
    ]
    best = min(range(len(costs)), key=costs.__getitem__)
    now, before = ([1e6 * found for found in taken[number]] for number in (best, 0))
    blocks = _blocks(candidates[best], tile, kernel)
    return candidates[best], Row(kernel, tile, blocks and asdict(blocks), now, before)


def _line(row: Row) -> str:
    now, before = (
        " ".join(f"{found:.1f}" for found in times) for times in (row.microseconds, row.before)
    )
    return f"{row.kernel:16} {row.tile:3} {row.blocks}: {now} µs, before {before}"


def _candidates(plan: Plan, kernel: str, tile: int) -> Iterator[Plan]:
    choices = _CHOICES[kernel]
    for numbers in itertools.product(*choices.values()):
        chosen = dict(zip(choices, numbers, strict=True))
        blocks: Any = replace(_blocks(plan, tile, kernel) or DecodeBlocks(), **chosen)
        if kernel == _ATTENTION:
            yield replace(plan, decode_attention=blocks)
        else:
            cut = replace(plan.cuts[tile], **{kernel: blocks})
            yield replace(plan, cuts=plan.cuts | {tile: cut})


def _seconds(device: torch.device, make: Make, plan: Plan, *, is_timed: bool = True) -> float:
    """Return what a call takes; infinite where the device has no room for it."""
    calls, _ = make(plan)
    try:
        if is_timed:
            return on.seconds(device, calls)
        calls[0]()
    except OutOfResources:
        pass
    return math.inf


def _blocks(plan: Plan, tile: int, kernel: str) -> Any:  # noqa: ANN401
    """Return how `kernel` is cut; None where that is left to the kernel."""
    return plan.decode_attention if kernel == _ATTENTION else getattr(plan.cuts[tile], kernel)


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
