"""Adapter files made in code: valid ones, and ones with a fault."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

MODULE = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}
"""A config that fits `TENSORS`."""

Tensors: TypeAlias = Mapping[str, tuple[str, list[int], bytes]]
"""Name -> dtype, shape and bytes."""

TENSORS: Tensors = {
    A: ("F32", [2, 4], struct.pack("<8f", *range(8))),
    B: ("F32", [3, 2], struct.pack("<6f", *range(6))),
}


def tensor_file(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """Return the file of `header`, as JSON unless it is bytes already, and `data`."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def manifest(config: Mapping[str, Any] = CONFIG, **changes: Any) -> str:
    """Return the manifest of a package."""
    return json.dumps({"format": 1, "kind": "lora", "peft_config": config} | changes)


def header(tensors: Tensors = TENSORS, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the header of a file that holds `tensors` end to end."""
    found: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, raw) in tensors.items():
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    return found


def data(tensors: Tensors = TENSORS) -> bytes:
    """Return the bytes of `tensors` end to end."""
    return b"".join(raw for _, _, raw in tensors.values())


def package(tensors: Tensors = TENSORS, config: Mapping[str, Any] = CONFIG) -> bytes:
    """Return a package of `tensors` and `config`, whether or not they fit each other."""
    return tensor_file(header(tensors, {"loramux.manifest": manifest(config)}), data(tensors))


def pair(
    module: str, rank: int, *, features: tuple[int, int] = (4, 3), dtype: str = "F32"
) -> Tensors:
    """Return A and B of zeros for `module`, which maps `features` in to features out."""
    size = 4 if dtype == "F32" else 2
    shapes = {"A": [rank, features[0]], "B": [features[1], rank]}
    return {
        f"base_model.model.{module}.lora_{half}.weight": (
            dtype,
            shape,
            bytes(shape[0] * shape[1] * size),
        )
        for half, shape in shapes.items()
    }


def write_folder(
    folder: Path, tensors: Tensors = TENSORS, config: Mapping[str, Any] | str = CONFIG
) -> Path:
    """Write what PEFT's save_pretrained would: a config, or its text as it is, and tensors."""
    folder.mkdir()
    text = config if isinstance(config, str) else json.dumps(config, indent=2)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(tensor_file(header(tensors), data(tensors)))
    return folder
