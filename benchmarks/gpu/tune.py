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
from typing import Annotated

import torch
import typer

from benchmarks.fixture import SHAPES, Shape
from benchmarks.gpu import device as on
from benchmarks.gpu.operands import Calls, LoraOperands, attention_calls, groups, lora_calls
from loramux_server.kernels import gpu
from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.plan import BLOCKS, FILE, Plan, capability

_CHOICES: dict[str, Sequence[int]] = {
    "columns": (16, 32, 64),
    "k": (64, 128, 256, 512),
    "n": (32, 64, 128, 256),
    "rows": (1, 2, 4, 8, 16),
    "context": (16, 32, 64, 128),
    "least_share": (64, 128, 256, 512, 1024),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4),
}
_GROUP_OF = {
    "shrink": ("qkv", "down"),
    "expand": ("qkv", "down"),
    "rope_write": ("qkv",),
    "silu_mul": ("gate_up",),
    "residual_norm": ("o", "down"),
}
"""Where each kernel is tried."""
_RANK = 16


def main(
    shape: Annotated[str, typer.Option(help=f"Layers of: {', '.join(SHAPES)}.")] = "llama-3.1-8b",
    batch: Annotated[list[int] | None, typer.Option(help="Tokens of a step.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(BLOCKS)}.")] = None,
    plans: Annotated[Path | None, typer.Option(help="File to change; the package's own.")] = None,
) -> None:
    """Tune all kernels and print what changed."""
    chosen, device = SHAPES[shape], on.choose()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    path = plans or Path(str(gpu.__path__[0])) / FILE
    plan = Plan.of(device)
    if plan.decode_attention is None:
        plan = replace(plan, decode_attention=DecodeBlocks())
    for kernel in only or list(BLOCKS):
        plan = _tuned(plan, kernel, chosen, device, dtype, batch or [1, 8, 32, 64])
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[capability(device)] = asdict(plan)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"{capability(device)} is in {path}")


def _tuned(
    plan: Plan,
    kernel: str,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    batches: list[int],
) -> Plan:
    """Return `plan` with the best of what was tried for `kernel`."""
    best, cost = plan, _cost(plan, kernel, shape, device, dtype, batches)
    first = cost
    for number in (field.name for field in fields(BLOCKS[kernel])):
        for value in _CHOICES[number]:
            blocks = replace(getattr(best, kernel), **{number: value})
            candidate = replace(best, **{kernel: blocks})
            found = _cost(candidate, kernel, shape, device, dtype, batches)
            if found < cost:
                best, cost = candidate, found
    print(f"{kernel:18} {cost / first:.2f} of before: {asdict(getattr(best, kernel))}", flush=True)
    return best


def _cost(
    plan: Plan,
    kernel: str,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    batches: list[int],
) -> float:
    """Return the mean of seconds per byte; infinite where the device has no room for it."""
    costs = []
    for calls, moved in _calls(plan, kernel, shape, device, dtype, batches):
        try:
            costs.append(on.seconds(device, calls) / moved)
        except RuntimeError as error:  # of CUDA, or Triton's out of resources
            if "out of resource" not in str(error):
                raise
            return math.inf
    return sum(costs) / len(costs)


def _calls(
    plan: Plan,
    kernel: str,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    batches: list[int],
) -> Iterator[Calls]:
    if kernel == "decode_attention":
        for tokens, context in itertools.product(batches, (1024, 8192)):
            yield attention_calls(shape, device, dtype, tokens, context, plan)
        return
    for group, tokens in itertools.product(_GROUP_OF[kernel], batches):
        for adapters in sorted({1, tokens}):
            width, outputs = groups(shape)[group]
            of = LoraOperands.make(width, outputs, tokens, [_RANK] * adapters, device, dtype)
            yield lora_calls(group, shape, of, plan)[kernel]


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
