"""Adapters with distinct random weights, as PEFT saves them, for generated bases."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel

from benchmarks.local_engine import packaged
from loramux_server.wire.adapter_source import AdapterSource

RANK = 16


def save_adapters(
    folder: Path,
    widths: Mapping[str, tuple[int, int, int]],
    count: int,
    **config: object,
) -> list[AdapterSource]:
    """Write `count` adapters of rank 16 to `folder`, in bfloat16, and pack them.

    Args:
        folder: Where a folder and a package are written for each.
        widths: Name of a module in the base, as PEFT saves it -> inputs, outputs, and the number of
            experts (1 for a layer).
        count: Number of adapters.
        config: Fields of their `adapter_config.json`.
    """
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, **config
    }  # fmt: skip
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        tensors = {}
        for name, (width_in, width_out, experts) in widths.items():
            key = f"base_model.model.{name}.lora_"
            for half, size in (
                ("A", (experts * RANK, width_in)), ("B", (width_out, experts * RANK))
            ):  # fmt: skip
                weight = torch.randn(size, generator=generator) * 0.02
                tensors[f"{key}{half}.weight"] = weight.to(torch.bfloat16)
        peft = folder / f"a{index:04d}"
        peft.mkdir(parents=True)
        save_file(tensors, peft / "adapter_model.safetensors")
        (peft / "adapter_config.json").write_text(json.dumps(fields))
    return packaged(folder)


def with_adapters(model: PreTrainedModel, folder: Path, count: int) -> PeftModel:
    """Return `model` with the first `count` adapters of `folder`, as PEFT serves them."""
    names = [f"a{index:04d}" for index in range(count)]
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # from transformers, for functions that PEFT calls
    peft = PeftModel.from_pretrained(model, str(folder / names[0]), adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(str(folder / name), adapter_name=name)
    return peft.eval()
