"""LoRA files of kohya-style trainers for text models: `lora_down`, `lora_up`, `alpha`.

A layer adds alpha / rank * up down; without alpha, up down. Tensors have the names of layers, or
these prefixed with `lora_` or `lycoris_`, with `_` for each dot. Which `_` was a dot follows from
the base model or, without one, from the usual names of layers in text models. Semantics follow
networks/lora.py of kohya-ss/sd-scripts.
"""

import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.files import open_regular
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.manifest import MANIFEST_KEY, check_notes
from loramux_adapters.packing import Output
from loramux_adapters.renamed import LoraFactors, write_renamed
from loramux_adapters.tensorfile import TensorInfo, read_header, tensor_reader

_PART = re.compile(r"(?P<layer>.+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")
_IMAGES = re.compile(r"lora_(te\d*|unet|prior_unet)_|lora_te\d*\.|lora_unet\.")
_OTHERS = ("dora_scale", "hada_", "lokr_", "lora_mid", "oft_", "diff", "norm")
_PREFIXES = ("lora_", "lycoris_")
_NAMES = frozenset({
    "model", "language_model", "transformer", "gpt_neox", "decoder", "layers", "h", "blocks",
    "self_attn", "self_attention", "attention", "attn", "mlp", "feed_forward", "block_sparse_moe",
    "experts", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "gate_proj",
    "up_proj", "down_proj", "gate_up_proj", "c_attn", "c_proj", "c_fc", "query_key_value", "dense",
    "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "wq", "wk", "wv", "wo", "w1", "w2", "w3",
})  # fmt: skip
"""Parts of layer names in text models, to tell dots from underscores."""


def is_kohya(path: Path) -> bool:
    """Return whether `path` is a file with such tensor names and not a package."""
    if not path.is_file():
        return False
    try:
        with open_regular(path) as file:
            header = read_header(file, os.fstat(file.fileno()).st_size, is_foreign=True)
    except (PackageError, OSError):
        return False
    return MANIFEST_KEY not in header.metadata and any(
        _PART.fullmatch(name) or _IMAGES.match(name) for name in header.tensors
    )


def pack_kohya(
    source: Path,
    output: Output,
    *,
    notes: Mapping[str, object | None] | None = None,
    base: KnownLayers | None = None,
) -> None:
    """Write the file `source`, made for `base`, to `output` as an equivalent package.

    Raises:
        PackageError: It is not a LoRA of a text model, or has something that is not supported.
    """
    with open_regular(source) as file:
        header = read_header(file, os.fstat(file.fileno()).st_size, is_foreign=True)
        read = tensor_reader(file, header.data_start)
        modules = {}
        known = _flattened(base) if base else None
        for layer, parts in sorted(_layers(header.tensors).items()):
            missing = [part for part in ("lora_down.weight", "lora_up.weight") if part not in parts]
            if missing:
                raise PackageError(f"layer {layer} has no {missing[0]}")
            a, b = parts["lora_down.weight"], parts["lora_up.weight"]
            alpha = float(a.shape[0]) if a.shape else 0.0
            if "alpha" in parts:
                alpha = _scalar(parts["alpha"], b"".join(read(parts["alpha"])))
            modules[_module(layer, known)] = LoraFactors(a, b, alpha)
        kept = {name: note for name, note in (notes or {}).items() if note is not None}
        write_renamed(modules, file, header, output, notes=check_notes(kept, "notes"))


def _layers(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Return the parts of each layer, by the file's name of the layer."""
    layers: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        if _IMAGES.match(name):
            raise PackageError(
                f"tensor {name} is not supported: it belongs to the text encoder or the UNet of an "
                "image model; expected a LoRA of a text model",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        found = _PART.fullmatch(name)
        if not found:
            other = next((kind for kind in _OTHERS if f".{kind}" in name), None)
            raise PackageError(
                f"tensor {name} is not supported"
                + (f": {other} cannot be converted" if other else "")
                + "; expected lora_down.weight, lora_up.weight or alpha",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        layers.setdefault(found["layer"], {})[found["part"]] = tensor
    return layers


def _scalar(tensor: TensorInfo, raw: bytes) -> float:
    """Return the single number in `tensor`."""
    if math.prod(tensor.shape) != 1:
        raise PackageError(
            f"tensor {tensor.name}: shape {shown(tensor.shape)} is not a single number"
        )
    if tensor.dtype == "BF16":  # the upper half of float32
        raw = b"\0\0" + raw
    (value,) = struct.unpack("<e" if tensor.dtype == "F16" else "<f", raw)
    return float(value)


def _flattened(base: KnownLayers) -> dict[str, list[str]]:
    """Return the layer names of `base` by the trainer's name for them."""
    found: dict[str, list[str]] = {}
    for module in base.layer_names():
        found.setdefault(module.replace(".", "_"), []).append(module)
    return found


def _module(layer: str, known: Mapping[str, list[str]] | None) -> str:
    """Return the name of the module that the trainer calls `layer`."""
    if "." in layer:
        return layer
    prefix = next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), "")
    flat = layer.removeprefix(prefix)
    ways = _possible_names(flat.split("_")) if known is None else known.get(flat, [])
    if not prefix or len(ways) != 1:
        fault = "could be one of several modules" if len(ways) > 1 else "matches no known module"
        hint = " of the base model" if known is not None else "; give the base model with --base"
        raise PackageError(
            f"layer {shown(layer)} {fault}{hint}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    return ways[0]


def _possible_names(words: list[str]) -> list[str]:
    """Return the names that result from joining `words` with `_` or `.`, at most two of them."""
    ways: list[list[str]] = [[""]]
    """For each number of words, the names made of that many."""
    for end in range(1, len(words) + 1):
        found = []
        for begin in range(max(0, end - 5), end):
            part = "_".join(words[begin:end])
            if part in _NAMES or part.isdecimal():
                found += [f"{before}.{part}" if before else part for before in ways[begin]]
        ways.append(found[:2])
    return ways[-1]
