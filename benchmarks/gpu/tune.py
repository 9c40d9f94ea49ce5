"""Autotune kernels on the current device, and write the result to the package's plans.

Each kernel is tried with every configuration at the shapes of an 8B model: with tiles of each size,
at several batch sizes, with few adapters and with many. The fastest on average is kept, relative to
the best for each of these cases. Serving only reads the result.

    python -m benchmarks.gpu.tune --processes 8
"""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from triton.runtime.errors import OutOfResources

from benchmarks.fixture import SHAPES, Shape
from benchmarks.gpu import device as on
from benchmarks.gpu.operands import (
    Calls,
    LoraOperands,
    attention_calls,
    draw_calls,
    groups,
    lora_calls,
)
from benchmarks.gpu.record import Record, replace_file
from loramux_server.kernels import gpu
from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.draw import Blocks as DrawBlocks
from loramux_server.kernels.gpu.plan import FILE, Plan, capability
from loramux_server.kernels.gpu.tiles import PREFILL_TILE, SHARED_TILE, SINGLE_TILE

_ATTENTION = "decode_attention"
_DRAW = "draw"
_CHOICES: dict[str, Mapping[str, Sequence[int]]] = {
    "silu_mul": {"n": (64, 128, 256, 512), "num_warps": (1, 2, 4, 8)},
    "residual_norm": {"k": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8, 16)},
    "rope_write": {"heads": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8)},
    _ATTENTION: {"context": (32, 64, 128), "least_share": (128, 256), "num_stages": (2, 3, 4)},
    "expand": {"n": (64, 128, 256), "num_warps": (1, 2, 4, 8)},
    "shrink": {"columns": (16, 64), "k": (64, 128), "num_stages": (3, 4)},
    _DRAW: {"v": (2048, 4096, 8192), "num_warps": (4, 8)},
}
"""Those that take most of a decode step come first."""
_BASE_CHOICES: dict[str, Mapping[str, Sequence[int]]] = {
    "silu_mul": {"n": (128, 256, 512, 1024), "num_warps": (2, 4, 8)},
    "residual_norm": {"row_warps": (2, 4, 8, 16)},
    "rope_write": {"heads": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8)},
}
"""The same where no token has an adapter."""
_GROUP_OF = {
    "shrink": ("qkv", "down"),
    "expand": ("qkv", "down"),
    "rope_write": ("qkv",),
    "silu_mul": ("gate_up",),
    "residual_norm": ("o",),
}
"""Where each kernel is tried."""
_GATHERING = ("shrink", "expand")
"""For others h has one plane, as from a matmul that includes A rows."""
_COLUMNS = {
    "silu_mul": ("n", 1),
    "residual_norm": ("k", 1),
    "rope_write": ("heads", 64),
    "expand": ("n", 1),
}
"""What says how many columns of B a program reads at once, and how many each is."""
_LEAST_HELD, _MOST_HELD = 8, {SINGLE_TILE: 128, SHARED_TILE: 64, PREFILL_TILE: 64}
"""Values of a block per thread: with fewer it idles, more do not fit its registers."""
_TILES = (SINGLE_TILE, SHARED_TILE, PREFILL_TILE)
_REQUESTS = (4, 16, 256)
"""Attention is tuned by the number of requests in a step: up to these numbers."""
_RANK = 16
_CONTEXTS = (1024, 4096)
Make = Callable[[Plan], Calls]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of tuning."""

    kernel: str
    size: int
    """Tokens per tile; for attention, the maximum requests per step; for sampling, 0."""
    is_base: bool = False
    """Whether it is for steps without adapters."""

    @property
    def table(self) -> str:
        """The part of a plan that contains it."""
        if self.kernel in (_ATTENTION, _DRAW):
            return self.kernel
        return "base_configs" if self.is_base else "configs"

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.kernel + f" {self.size}" * (self.size > 0) + " bare" * self.is_base

    def blocks(self, plan: Plan) -> Any:  # noqa: ANN401
        """Return its configuration in `plan`."""
        if self.kernel == _ATTENTION:
            return plan.attention_of(self.size)
        if self.kernel == _DRAW:
            return plan.draw
        return getattr(plan.configs_for(self.size, is_base=self.is_base), self.kernel)

    def candidates(self, plan: Plan) -> Iterator[Plan]:
        """Yield plans that differ from `plan` in its configuration."""
        if self.kernel == _DRAW:
            yield replace(plan, draw=None)
        choices = (_BASE_CHOICES if self.is_base else _CHOICES)[self.kernel]
        for numbers in itertools.product(*choices.values()):
            chosen = dict(zip(choices, numbers, strict=True))
            if self.kernel == _DRAW:
                yield replace(plan, draw=DrawBlocks(**chosen))
                continue
            if self.is_base or self._fits(chosen):
                blocks = replace(self.blocks(plan), **chosen)
                table = getattr(plan, self.table)
                if self.kernel != _ATTENTION:
                    blocks = replace(table[self.size], **{self.kernel: blocks})
                yield replace(plan, **{self.table: table | {self.size: blocks}})

    def _fits(self, chosen: Mapping[str, int]) -> bool:
        """Return whether each thread of such a program has enough, but not too much, work."""
        if self.kernel not in _COLUMNS:
            return True
        name, width = _COLUMNS[self.kernel]
        rows = 16 if self.kernel == "residual_norm" else max(16, self.size)
        held = rows * chosen[name] * width / (32 * chosen["num_warps"])
        return _LEAST_HELD <= held <= _MOST_HELD[self.size]


def units(kernels: Sequence[str] | None, sizes: Sequence[int] | None) -> list[Unit]:
    """Return the units to tune, of these kernels and sizes; all if none are given."""
    found = []
    for kernel in kernels or _CHOICES:
        if kernel == _ATTENTION:
            found += [Unit(kernel, most) for most in _REQUESTS]
            continue
        if kernel == _DRAW:
            found.append(Unit(kernel, 0))
            continue
        # In prefill, B of the layers before the norms has its own kernel.
        tiles = [size for size in _TILES if kernel != "residual_norm" or size != PREFILL_TILE]
        found += [Unit(kernel, size) for size in tiles]
        if kernel in _BASE_CHOICES:
            found += [Unit(kernel, size, is_base=True) for size in (SINGLE_TILE, PREFILL_TILE)]
    tables = (_ATTENTION, _DRAW)
    return [unit for unit in found if unit.kernel in tables or unit.size in (sizes or _TILES)]


@dataclass(frozen=True, slots=True)
class Row:
    """The best configuration of a kernel."""

    unit: str
    blocks: dict[str, int]
    """Empty if sampling by sorting is fastest."""
    microseconds: list[float]
    """Times for each size of a step."""
    before: list[float]
    """The same with the previous configuration."""


def main(
    shape: Annotated[str, typer.Option(help=f"Layers of: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    batch: Annotated[list[int] | None, typer.Option(help="Tokens per decode step.")] = None,
    chunk: Annotated[list[int] | None, typer.Option(help="Tokens per prefill step.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(_CHOICES)}.")] = None,
    tile: Annotated[list[int] | None, typer.Option(help=f"Of {_TILES}.")] = None,
    processes: Annotated[int, typer.Option(help="Compile in this many processes first.")] = 0,
    compile_share: Annotated[
        str, typer.Option(help="I/N: only compile every N-th configuration, from the I-th on.")
    ] = "",
    plans: Annotated[Path | None, typer.Option(help="File to change; the package's own.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the results, as JSON.")] = None,
) -> None:
    """Tune all kernels and print what changed. The plans are updated after each kernel."""
    chosen, device = SHAPES[shape], on.choose()
    path = plans or Path(str(gpu.__path__[0])) / FILE
    plan = rekeyed(Plan.of(device))
    batches, chunks = batch or [1, 8, 32, 64], chunk or [512, 2048]
    steps = Steps(chosen, device, batches, chunks)
    found = units(only, tile)
    if compile_share:
        first, count = map(int, compile_share.split("/"))
        for unit in found:
            makes = list(steps.of(unit, plan))
            for candidate in list(unit.candidates(plan))[first::count]:
                for make in makes:
                    _seconds(device, make, candidate, is_timed=False)
        return
    rows: list[dict[str, Any]] = []
    record = Record(
        output,
        [unit.name for unit in found],
        command="python -m benchmarks.gpu.tune",
        shape=shape,
        rows=rows,
        machine=on.describe(device),
    )
    if processes:
        with record.part("compile"):
            sizes = [f"--batch={n}" for n in batches] + [f"--chunk={n}" for n in chunks]
            chosen_parts = [f"--only={kernel}" for kernel in only or ()]
            chosen_parts += [f"--tile={size}" for size in tile or ()]
            _compile([f"--shape={shape}", *sizes, *chosen_parts], processes)
    for unit in found:
        with record.part(unit.name):
            if makes := list(steps.of(unit, plan)):
                plan, row = _tuned(plan, unit, device, makes)
                rows.append(asdict(row))
                print(_line(row), flush=True)
                _keep(plan, path, capability(device))
    print(f"{capability(device)} is in {path}")
    if record.has_failed:
        raise SystemExit(1)


def rekeyed(plan: Plan) -> Plan:
    """Return `plan` with attention split by the numbers of requests distinguished here."""
    cuts = {most: plan.attention_of(most) or DecodeBlocks() for most in _REQUESTS}
    return replace(plan, decode_attention=cuts)


def _keep(plan: Plan, path: Path, device: str) -> None:
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[device] = asdict(plan)
    replace_file(path, json.dumps(entries, indent=1) + "\n")


def _compile(arguments: list[str], processes: int) -> None:
    """Compile everything to Triton's cache in several processes: one core takes minutes."""
    command = [sys.executable, "-m", "benchmarks.gpu.tune", *arguments]
    running = [
        subprocess.Popen([*command, f"--compile-share={share}/{processes}"])
        for share in range(processes)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a kernel could not be compiled; see above")


class Steps:
    """The inputs that kernels are tried on."""

    def __init__(
        self, shape: Shape, device: torch.device, batches: list[int], chunks: list[int]
    ) -> None:
        """Decode with `batches` requests, and prefill with prompts of `chunks` tokens."""
        self._shape = shape
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._batches, self._chunks = batches, chunks

    def of(self, unit: Unit, plan: Plan) -> Iterator[Make]:
        """Yield functions from a plan to calls of `unit`, one for each step that has such calls."""
        shape, device, dtype = self._shape, self._device, self._dtype
        if unit.kernel == _ATTENTION:
            least = max([0, *(most for most in _REQUESTS if most < unit.size)])
            batches = [tokens for tokens in self._batches if least < tokens <= unit.size]
            for tokens, context in itertools.product(batches, _CONTEXTS):
                yield partial(attention_calls, shape, device, dtype, tokens, context)
            return
        if unit.kernel == _DRAW:
            for tokens in self._batches:
                yield partial(draw_calls, shape, device, tokens)
            return
        planes = plan.configs[unit.size].planes if unit.kernel in _GATHERING else 1
        for group, (tokens, chunk, adapters) in itertools.product(
            _GROUP_OF[unit.kernel], self._sizes(unit.size)
        ):
            width, outputs = groups(shape)[group]
            of = LoraOperands.make(
                width, outputs, tokens, [_RANK] * adapters, device, dtype,
                chunk=chunk, planes=planes,
            )  # fmt: skip
            if of.staged.tiles.size == unit.size:
                yield partial(_calls_of, unit, group, shape, of)

    def _sizes(self, tile: int) -> Iterator[tuple[int, int, int]]:
        """Yield (tokens, tokens per request, adapters) of steps with tiles of `tile`."""
        if tile == PREFILL_TILE:
            for tokens, adapters in itertools.product(self._chunks, (1, 4)):
                yield tokens, tokens // adapters, adapters
            return
        for tokens in self._batches:
            counts = {tokens} if tile == SINGLE_TILE else {1, max(1, tokens // 4)}
            for adapters in sorted(counts):
                yield tokens, 1, adapters


def _calls_of(unit: Unit, group: str, shape: Shape, of: LoraOperands, plan: Plan) -> Calls:
    return lora_calls(group, shape, of, plan, is_base=unit.is_base)[unit.kernel]


def _tuned(plan: Plan, unit: Unit, device: torch.device, makes: list[Make]) -> tuple[Plan, Row]:
    """Return `plan` with the best configuration of `unit`."""
    candidates = [plan, *unit.candidates(plan)]
    taken = [[_seconds(device, make, candidate) for make in makes] for candidate in candidates]
    least = [min(column) for column in zip(*taken, strict=True)]
    costs = [
        sum(found / best for found, best in zip(row, least, strict=True)) / len(least)
        for row in taken
    ]
    best = min(range(len(costs)), key=costs.__getitem__)
    now, before = ([1e6 * found for found in taken[number]] for number in (best, 0))
    blocks = unit.blocks(candidates[best])
    return candidates[best], Row(unit.name, asdict(blocks) if blocks else {}, now, before)


def _line(row: Row) -> str:
    now, before = (
        " ".join(f"{found:.1f}" for found in times) for times in (row.microseconds, row.before)
    )
    return f"{row.unit:22} {row.blocks}: {now} µs, before {before}"


def _seconds(device: torch.device, make: Make, plan: Plan, *, is_timed: bool = True) -> float:
    """Return the time of a call; infinite if it does not fit the device."""
    calls, _ = make(plan)
    try:
        if is_timed:
            return on.seconds_apart(device, calls)
        calls[0]()
    except OutOfResources:
        pass
    return math.inf


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
