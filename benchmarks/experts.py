"""Cost of a decode step with adapters of experts, and of the base with quantized weights.

A mixture of experts with random weights, saved in bfloat16, some layers of a real shape. Concurrent
requests run without adapters, with distinct adapters of attention only, and with distinct adapters
that also change every expert. The base also runs with kernels `torch`, where experts are those of
transformers.

    python -m benchmarks.experts --batch 1 --batch 8
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from transformers import OlmoeConfig

from benchmarks import machine
from benchmarks.local_engine import LocalEngine
from benchmarks.random_adapters import save_adapters
from benchmarks.random_bases import save_base
from benchmarks.step_ways import in_turns, write_record
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.engine_config import EngineConfig

_ATTENTION = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Shape:
    """The shape of a mixture."""

    hidden: int
    inner: int
    experts: int
    chosen: int
    heads: int


SHAPES = {"olmoe-1b-7b": Shape(2048, 1024, 64, 8, 16), "tiny": Shape(64, 32, 4, 2, 4)}


def main(
    batch: Annotated[list[int], typer.Option(help="Concurrent requests; repeatable.")],
    steps: Annotated[int, typer.Option(help="Steps per round.")] = 20,
    repeats: Annotated[int, typer.Option(help="Alternating rounds; medians are reported.")] = 3,
    context: Annotated[int, typer.Option(help="Prompt length in tokens.")] = 64,
    layers: Annotated[int, typer.Option(help="Number of layers of the base.")] = 3,
    shape: Annotated[str, typer.Option(help=f"Layer shape: {', '.join(SHAPES)}.")] = "olmoe-1b-7b",
    quantization: Annotated[str, typer.Option(help="Quantization of the base's weights.")] = "none",
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print milliseconds per step, and ratios to the base alone."""
    options = {
        "steps": steps, "repeats": repeats, "context": context, "layers": layers, "shape": shape,
        "quantization": quantization,
    }  # fmt: skip
    described, figures = machine.describe(), []
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = save_base(folder / "base", _config(SHAPES[shape], layers))
        attention = _save_adapters(folder / "attention", SHAPES[shape], layers, max(batch))
        experts = _save_adapters(
            folder / "experts", SHAPES[shape], layers, max(batch), with_experts=True
        )
        ours, theirs = (
            LocalEngine(base, EngineConfig(model="", kernels=kernels, quantization=rounded,
                                           adapter_memory=4 << 30, max_running=max(batch)))
            for kernels, rounded in (("cpu", quantization), ("torch", "none"))
        )  # fmt: skip
        setups: dict[str, tuple[LocalEngine, Sequence[AdapterSource]]] = {
            "base": (ours, ()), "attention": (ours, attention), "experts": (ours, experts),
            "base, torch": (theirs, ()),
        }  # fmt: skip
        for size in batch:
            ways = {
                way: partial(engine.step_seconds, size, adapters, context, steps)
                for way, (engine, adapters) in setups.items()
            }
            figures.append(in_turns(size, ways, repeats))
        ours.close()
        theirs.close()
    if output:
        write_record(output, "python -m benchmarks.experts", options, described, figures)


def _config(shape: Shape, layers: int) -> OlmoeConfig:
    return OlmoeConfig(
        vocab_size=2048, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        num_experts=shape.experts, num_experts_per_tok=shape.chosen, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def _save_adapters(
    folder: Path, shape: Shape, layers: int, count: int, *, with_experts: bool = False
) -> list[AdapterSource]:
    """Write `count` adapters with distinct weights, as PEFT saves them, and pack them."""
    config: dict[str, object] = {"target_modules": list(_ATTENTION)}
    widths = {f"self_attn.{name}": (shape.hidden, shape.hidden, 1) for name in _ATTENTION}
    if with_experts:
        config["target_parameters"] = ["experts.gate_up_proj", "experts.down_proj"]
        widths["mlp.experts.base_layer"] = (shape.hidden, 2 * shape.inner, shape.experts)
        widths["mlp.experts"] = (shape.inner, shape.hidden, shape.experts)
    named = {
        f"model.layers.{layer}.{name}": width
        for layer in range(layers)
        for name, width in widths.items()
    }
    return save_adapters(folder, named, count, **config)


if __name__ == "__main__":
    typer.run(main)
