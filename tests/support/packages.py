"""Packages for tests that need no model."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from loramux_adapters import pack, read_package
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry


def small_package(number: int) -> bytes:
    """One of many packages that differ in a weight."""
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
        "target_modules": ["q_proj"], "base_model_name_or_path": "somebody/base",
    }  # fmt: skip
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"{prefix}.lora_A.weight": np.full((2, 3), number, np.float32),
        f"{prefix}.lora_B.weight": np.ones((4, 2), np.float32),
    }
    output = io.BytesIO()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(weights, folder / "adapter_model.safetensors")
        pack(folder, output)
    return output.getvalue()


def packed(folder: Path) -> bytes:
    """The package of a PEFT folder."""
    output = io.BytesIO()
    pack(folder, output)
    return output.getvalue()


def publish(registry: Registry, name: str, data: bytes) -> AdapterRecord:
    """Register `data` under `name`, as an upload does in the end."""
    staged = registry.stage()
    try:
        staged.write(data)
        checked = read_package(staged.file, staged.size)
        return registry.register(registry.publish(name, staged, checked))[0]
    finally:
        registry.discard(staged)
