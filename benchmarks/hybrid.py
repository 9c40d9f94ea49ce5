"""Cost of a decode step of a hybrid base, with and without adapters of its recurrent layers.

Some layers of Qwen3.5's shape with random weights, saved in bfloat16: three with linear attention
per layer with full attention. Concurrent requests run without adapters, and with distinct adapters
of both kinds of layers. transformers' own model gets as many texts of equal length in a batch, and
PEFT a distinct adapter for each of them.

    python -m benchmarks.hybrid --batch 1 --batch 8
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel, Qwen3_5TextConfig

from benchmarks import machine
from benchmarks.local_engine import LocalEngine
from benchmarks.random_adapters import save_adapters, with_adapters
from benchmarks.random_bases import load_base, save_base
from benchmarks.step_ways import in_turns, write_record
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.engine_config import EngineConfig

VOCAB = 2048


@dataclass(frozen=True)
class Shape:
    """The shape of a base."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    linear_heads: int
    """Number of key heads, and of value heads."""
    linear_width: int


SHAPES = {
    "qwen3.5-0.8b": Shape(1024, 3584, 8, 2, 256, 16, 128),
    "tiny": Shape(64, 96, 4, 2, 16, 2, 64),
}


def main(
    batch: Annotated[list[int], typer.Option(help="Concurrent requests; repeatable.")],
    steps: Annotated[int, typer.Option(help="Steps per round.")] = 20,
    repeats: Annotated[int, typer.Option(help="Alternating rounds; medians are reported.")] = 3,
    context: Annotated[int, typer.Option(help="Prompt length in tokens.")] = 64,
    layers: Annotated[int, typer.Option(help="Number of layers of the base.")] = 4,
    shape: Annotated[str, typer.Option(help=f"Layer shape: {', '.join(SHAPES)}.")] = "qwen3.5-0.8b",
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print milliseconds per step, and ratios to the base alone."""
    options = {
        "steps": steps, "repeats": repeats, "context": context, "layers": layers, "shape": shape
    }  # fmt: skip
    described, figures = machine.describe(), []
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        config = _config(SHAPES[shape], layers)
        base = save_base(folder / "base", config)
        adapters = _save_adapters(folder / "adapters", config, max(batch))
        engine = LocalEngine(
            base, EngineConfig(model="", adapter_memory=1 << 30, max_running=max(batch))
        )
        theirs = {
            str(dtype).removeprefix("torch."): load_base(base, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        }
        peft = with_adapters(load_base(base), folder / "adapters", max(batch))
        for size in batch:
            ways: dict[str, Callable[[], float]] = {
                "base": partial(engine.step_seconds, size, (), context, steps),
                "adapters": partial(engine.step_seconds, size, adapters, context, steps),
            }
            for dtype, model in theirs.items():
                ways[f"transformers, {dtype}"] = partial(_decode, model, size, context, steps)
            names = [f"a{index:04d}" for index in range(size)]
            ways["PEFT, float32"] = partial(
                _decode, peft, size, context, steps, adapter_names=names
            )
            figures.append(in_turns(size, ways, repeats))
        engine.close()
    if output:
        write_record(output, "python -m benchmarks.hybrid", options, described, figures)


@torch.inference_mode()
def _decode(
    model: PreTrainedModel | PeftModel, size: int, context: int, steps: int, **named: object
) -> float:
    """Return the median seconds of a decode step of `model` for `size` texts."""
    generator = torch.Generator().manual_seed(0)
    cache = DynamicCache(config=model.config)
    token = torch.randint(3, VOCAB, (size, context), generator=generator)
    seconds = []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        made = model(input_ids=token, past_key_values=cache, logits_to_keep=1, **named)
        token = made.logits[:, -1].argmax(-1, keepdim=True)
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])


def _config(shape: Shape, layers: int) -> Qwen3_5TextConfig:
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    return Qwen3_5TextConfig(
        vocab_size=VOCAB, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_width,
        linear_num_key_heads=shape.linear_heads, linear_num_value_heads=shape.linear_heads,
        linear_key_head_dim=shape.linear_width, linear_value_head_dim=shape.linear_width,
        layer_types=[kinds[layer % 4] for layer in range(layers)], bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip


def _save_adapters(folder: Path, config: Qwen3_5TextConfig, count: int) -> list[AdapterSource]:
    """Write adapters of the input and output projections of both kinds of layers."""
    linear = config.linear_num_key_heads * config.linear_key_head_dim
    full = config.num_attention_heads * config.head_dim
    widths = {}
    for layer, kind in enumerate(config.layer_types):
        if kind == "linear_attention":
            widths[f"{layer}.linear_attn.in_proj_qkv"] = (config.hidden_size, 3 * linear, 1)
            widths[f"{layer}.linear_attn.out_proj"] = (linear, config.hidden_size, 1)
        else:  # each query has a gate
            widths[f"{layer}.self_attn.q_proj"] = (config.hidden_size, 2 * full, 1)
            widths[f"{layer}.self_attn.o_proj"] = (full, config.hidden_size, 1)
    named = {f"model.layers.{name}": width for name, width in widths.items()}
    targets = sorted({name.rpartition(".")[2] for name in named})
    return save_adapters(folder, named, count, target_modules=targets)


if __name__ == "__main__":
    typer.run(main)
