"""Packing of folders that the `adapters` library (AdapterHub) saved, by adapter architecture.

Semantics follow `adapters.LoRAConfig` and `adapters.methods.lora`, version 1: a layer adds
alpha / r * B A. Tensors are named `<layer>.loras.<adapter>.lora_A` and `.lora_B`.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from loramux_adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from loramux_adapters.bottleneck_sites import PLACES
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import (
    PREFIX,
    Fields,
    alpha,
    integer,
    invalid,
    refuse_unsupported,
    unsupported,
)
from loramux_adapters.files import open_regular, pickle_hint
from loramux_adapters.packing import Output, write_package
from loramux_adapters.peft_config import MAX_RANK
from loramux_adapters.peft_folder import is_peft_folder, read_config, read_notes
from loramux_adapters.prediction_head import has_head, open_head
from loramux_adapters.renamed import LoraFactors, write_renamed
from loramux_adapters.tensorfile import TensorInfo, read_header, tensor_reader

TENSOR_FILE = "adapter.safetensors"
PICKLE_FILE = "pytorch_adapter.bin"

LORA = Fields(
    honoured=frozenset({"architecture", "r", "alpha"}),
    # The tensors tell which layers are adapted; the rest matters in training only.
    recorded=frozenset({
        "selfattn_lora", "intermediate_lora", "output_lora", "attn_matrices", "leave_out",
        "dropout", "init_weights", "dtype",
    }),
    refused=dict.fromkeys(
        ("composition_mode", "use_gating", "vera_d", "vera_b"), "it would change results"
    ),
    harmless={"composition_mode": ("add",)},
)  # fmt: skip
"""How each config field of the architecture `lora` is treated."""

_NETWORK = re.compile(
    rf"(?P<module>.+\.(?:{'|'.join(map(re.escape, PLACES))}))\.adapters"
    r"\.(?P<adapter>[^.]+)\.(?P<part>.+)"
)
_NAME = re.compile(r"(?P<layer>.+)\.loras\.(?P<adapter>[^.]+)\.(?P<factor>lora_[AB])")


def is_adapters_library(source: Path) -> bool:
    """Return whether `source` is a folder saved by the `adapters` library."""
    return is_peft_folder(source) and "config" in read_config(source)


def pack_adapters_library(
    source: Path, output: Output, *, notes: Mapping[str, object | None] | None = None
) -> None:
    """Write the folder `source` to `output` as an equivalent package.

    Raises:
        PackageError: Its architecture, a config field or a tensor is not supported.
    """
    config = read_config(source).get("config")
    if not isinstance(config, dict):
        raise invalid("config", f"is {shown(config)}, not an object")
    architecture = config.get("architecture") or "bottleneck"
    pack_architecture = _ARCHITECTURES.get(str(architecture))
    if pack_architecture is None:
        raise unsupported("architecture", architecture, f"expected {' or '.join(_ARCHITECTURES)}")
    # An adapter with a prediction head makes no embeddings, whatever files lie beside it.
    noted = read_notes(source, notes, but=("embedding",) if has_head(source) else ())
    pack_architecture(source, config, output, noted)


def _pack_lora(
    source: Path, config: Mapping[str, object], output: Output, notes: Mapping[str, object]
) -> None:
    refuse_unsupported(config, LORA)
    if has_head(source):
        raise PackageError(
            f"{source} has a prediction head, which is supported with bottlenecks only; save the "
            "adapter with with_head=False",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    rank = integer(config, "r", 8, 1, MAX_RANK)
    scale = alpha(config.get("alpha", 8), "alpha")
    with _open_tensors(source) as file:
        header = read_header(file, os.fstat(file.fileno()).st_size)
        modules: dict[str, LoraFactors] = {}
        for layer, factors in sorted(_factors(header.tensors).items()):
            for factor in ("lora_A", "lora_B"):
                if factor not in factors:
                    raise PackageError(f"layer {layer} has no {factor}")
            a, b = factors["lora_A"], factors["lora_B"]
            if a.shape[0] != rank:
                raise PackageError(
                    f"layer {layer}: lora_A has {a.shape[0]} rows for r = {rank}: one update for "
                    "several projections is not supported",
                    "UNSUPPORTED_ADAPTER_FEATURE",
                )
            modules[layer] = LoraFactors(a, b, scale)
        write_renamed(modules, file, header, output, notes=notes)


def _pack_bottleneck(
    source: Path, config: Mapping[str, object], output: Output, notes: Mapping[str, object]
) -> None:
    base_model = read_config(source).get("model_name") or ""
    as_peft = {**config, "peft_type": BOTTLENECK, "base_model_name_or_path": base_model}
    as_peft = {field: value for field, value in as_peft.items() if value is not None}
    with _open_tensors(source) as file, open_head(source) as head:
        header = read_header(file, os.fstat(file.fileno()).st_size)
        old: dict[str, TensorInfo] = {}
        adapters = set()
        for tensor in header.tensors.values():
            parts = _NETWORK.fullmatch(tensor.name)
            if not parts:
                raise PackageError(
                    f"tensor {tensor.name} is not supported; expected the tensors of a bottleneck "
                    f"after attention or an MLP, such as '….{PLACES[0]}.adapters.<adapter>.…'",
                    "UNSUPPORTED_ADAPTER_FEATURE",
                )
            adapters.add(parts["adapter"])
            old[f"{PREFIX}{parts['module']}.{parts['part']}"] = tensor
        _check_single(adapters)
        of_networks = tensor_reader(file, header.data_start)
        if head:
            as_peft |= head.fields
            if head.labels and "classification" not in notes:
                notes = {**notes, "classification": dict(head.labels)}
        given = head.tensors if head else {}
        tensors = {name: replace(tensor, name=name) for name, tensor in {**old, **given}.items()}

        def read(new: TensorInfo) -> Iterable[bytes]:
            if head and new.name in given:
                return head.read(given[new.name])
            return of_networks(old[new.name])

        write_package(as_peft, tensors, read, output, notes=notes)


def _check_single(adapters: set[str]) -> None:
    if len(adapters) > 1:
        raise PackageError(f"{TENSOR_FILE} holds several adapters: {shown(sorted(adapters))}")


_ARCHITECTURES: Mapping[
    str, Callable[[Path, Mapping[str, object], Output, Mapping[str, object]], None]
] = {"lora": _pack_lora, "bottleneck": _pack_bottleneck}
"""Adapter architecture -> function that packs such a folder."""


def _factors(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Return the tensors `lora_A` and `lora_B` of each layer."""
    found: dict[str, dict[str, TensorInfo]] = {}
    adapters = set()
    for name, tensor in tensors.items():
        parts = _NAME.fullmatch(name)
        if not parts:
            raise PackageError(
                f"tensor {name} is not supported; expected '….loras.<adapter>.lora_A' or '.lora_B'",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        adapters.add(parts["adapter"])
        found.setdefault(parts["layer"], {})[parts["factor"]] = tensor
    _check_single(adapters)
    return found


def _open_tensors(source: Path) -> BinaryIO:
    try:
        return open_regular(source / TENSOR_FILE)
    except OSError as error:
        hint = ""
        if (source / PICKLE_FILE).exists():
            hint = f"; {pickle_hint(source, PICKLE_FILE)}"
        raise PackageError(
            f"{source} has no readable {TENSOR_FILE} ({error.strerror}){hint}"
        ) from None
