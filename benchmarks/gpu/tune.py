"""Find how kernels are best cut on the device at hand, and write it to the package's plans.

One number after the other of each kernel is tried at the shapes of an 8B model, at several batch
sizes, with one adapter for all and one for each; what is kept is what makes the sum of all times,
each relative to its floor, least. Serving only reads the result.

    python -m benchmarks.gpu.tune
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.fixture import SHAPES, Shape
from benchmarks.gpu import device as on
from benchmarks.gpu.operands import Calls, LoraOperands, attention_calls, groups, lora_calls
from loramux_server.kernels import gpu
from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.plan import BLOCKS, FILE, Plan, capability
from loramux_server.kernels.gpu.staged import PREFILL_TILE, SHARED_TILE, SINGLE_TILE

_CHOICES: dict[str, Sequence[int]] = {
    "columns": (16, 32, 64),
    "k": (64, 128, 256),
    "n": (32, 64, 128, 256, 512),
    "heads": (1, 2, 4, 8),
    "context": (32, 64, 128),
    "least_share": (64, 128, 256, 512),
    "num_warps": (1, 2, 4, 8),
    "row_warps": (4, 8, 16),
    "num_stages": (1, 2, 3, 4),
}
_GROUP_OF = {
    "shrink": ("qkv", "down"),
    "expand": ("qkv", "down"),
    "rope_write": ("qkv",),
    "silu_mul": ("gate_up",),
    "residual_norm": ("o",),
}
"""Where each kernel is tried."""
_RANK = 16
_ATTENTION = "decode_attention"
_TILES = (SINGLE_TILE, SHARED_TILE, PREFILL_TILE)


def main(
    shape: Annotated[str, typer.Option(help=f"Layers of: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    batch: Annotated[list[int] | None, typer.Option(help="Tokens of a decode step.")] = None,
    chunk: Annotated[list[int] | None, typer.Option(help="Tokens of a prefill step.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(BLOCKS)}, {_ATTENTION}.")
    ] = None,
    plans: Annotated[Path | None, typer.Option(help="File to change; the package's own.")] = None,
) -> None:
    """Tune all kernels and print what changed."""
    chosen, device = SHAPES[shape], on.choose()
    path = plans or Path(str(gpu.__path__[0])) / FILE
    plan = Plan.of(device)
    plan = replace(plan, decode_attention=plan.decode_attention or DecodeBlocks())
    trials = Trials(chosen, device, batch or [1, 8, 32, 64], chunk or [512, 2048])
    for kernel in only or [*BLOCKS, _ATTENTION]:
        for tile in _TILES if kernel in BLOCKS else (SINGLE_TILE,):
            plan = trials.tuned(plan, kernel, tile)
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[capability(device)] = asdict(plan)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"{capability(device)} is in {path}")


class Trials:
    """Times kernels as plans have them cut."""

    def __init__(
        self, shape: Shape, device: torch.device, batches: list[int], chunks: list[int]
    ) -> None:
        """Decode with `batches` requests, and prefill with prompts of `chunks` tokens."""
        self._shape = shape
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._batches, self._chunks = batches, chunks

    def tuned(self, plan: Plan, kernel: str, tile: int) -> Plan:
        """Return `plan` with the best of what was tried for `kernel` and tiles of one size."""
        best, cost = plan, self._cost(plan, kernel, tile)
        first = cost
        for number in (field.name for field in fields(_blocks(plan, tile, kernel))):
            for value in _CHOICES[number]:
                candidate = _changed(best, kernel, tile, number, value)
                found = self._cost(candidate, kernel, tile)
                if found < cost:
                    best, cost = candidate, found
        now = asdict(_blocks(best, tile, kernel))
        print(f"{kernel:18} {tile:3} {cost / first:.2f} of before: {now}", flush=True)
        return best

    def _cost(self, plan: Plan, kernel: str, tile: int) -> float:
        """Return the mean of seconds per byte; infinite where the device has no room for it."""
        costs = []
        for calls, moved in self._calls(plan, kernel, tile):
            try:
                costs.append(on.seconds(self._device, calls) / moved)
            except RuntimeError as error:  # of CUDA, or Triton's out of resources
                if "out of resource" not in str(error):
                    raise
                return math.inf
        return sum(costs) / max(1, len(costs))

    def _calls(self, plan: Plan, kernel: str, tile: int) -> Iterator[Calls]:
        shape, device, dtype = self._shape, self._device, self._dtype
        if kernel == _ATTENTION:
            for tokens, context in itertools.product(self._batches, (1024, 4096)):
                yield attention_calls(shape, device, dtype, tokens, context, plan)
            return
        for group, (tokens, chunk, adapters) in itertools.product(
            _GROUP_OF[kernel], self._steps(tile)
        ):
            width, outputs = groups(shape)[group]
            of = LoraOperands.make(
                width, outputs, tokens, [_RANK] * adapters, device, dtype,
                chunk=chunk, planes=plan.cuts[tile].planes,
            )  # fmt: skip
            if of.staged.tiles.size == tile:
                yield lora_calls(group, shape, of, plan)[kernel]

    def _steps(self, tile: int) -> Iterator[tuple[int, int, int]]:
        """Return (tokens, tokens of a request, adapters) of steps that have tiles of `tile`."""
        if tile == PREFILL_TILE:
            for tokens, adapters in itertools.product(self._chunks, (1, 4)):
                yield tokens, tokens // adapters, adapters
            return
        for tokens in self._batches:
            for adapters in {tokens} if tile == SINGLE_TILE else {1, max(1, tokens // 4)}:
                yield tokens, 1, adapters


def _blocks(plan: Plan, tile: int, kernel: str) -> Any:  # noqa: ANN401
    """Return how `kernel` is cut."""
    return plan.decode_attention if kernel == _ATTENTION else getattr(plan.cuts[tile], kernel)


def _changed(plan: Plan, kernel: str, tile: int, number: str, value: int) -> Plan:
    """Return `plan` with another number for how `kernel` is cut."""
    blocks = replace(_blocks(plan, tile, kernel), **{number: value})
    if kernel == _ATTENTION:
        return replace(plan, decode_attention=blocks)
    return replace(plan, cuts=plan.cuts | {tile: replace(plan.cuts[tile], **{kernel: blocks})})


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
