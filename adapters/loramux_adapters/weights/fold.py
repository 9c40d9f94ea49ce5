"""Conversion of adapters of other methods to equivalent, or nearly equivalent, LoRA.

The update of a layer's weight is a matrix. If its rank is small enough for a LoRA, it is converted
exactly, else to the nearest matrix of the maximum rank, and the error is reported. Methods with a
full-rank update are merged with the base's weight, as a layer that was trained in full.

Legend: R rank, I input features, O output features.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import Fields, refuse_unsupported, split_name
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.lora_config import Bias, LoraConfig
from loramux_adapters.packing import Output
from loramux_adapters.peft_config import MAX_RANK, check_config
from loramux_adapters.peft_folder import open_tensors, read_config
from loramux_adapters.saved import saved_names, saved_tensors
from loramux_adapters.sources import MAX_ERROR
from loramux_adapters.targets import not_targeted
from loramux_adapters.tensorfile import (
    INTEGER_BYTES,
    ITEM_BYTES,
    ReadTensor,
    TensorInfo,
    read_header,
    tensor_reader,
)
from loramux_adapters.weights.dtypes import decoded, integers
from loramux_adapters.weights.full_weights import Change, FullWeights
from loramux_adapters.weights.spectrum import Factors, Wide, norm, spectrum
from loramux_adapters.weights.update import Update, write_updates

MAX_DENSE = 1 << 27
"""Maximum number of elements of a matrix that is computed."""
_KEPT = (
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "modules_to_save", "bias",
)  # fmt: skip
"""Fields that mean the same for a LoRA."""

Parts = Mapping[str, npt.NDArray[Any]]
"""Suffix of a tensor's name -> its values: float32, or int64 for integer dtypes."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known about a layer beside its tensors."""

    module: str
    rank: int
    """The rank in the config."""
    config: Mapping[str, object]
    """The whole config, of which only the field names were checked, against `Fields`."""
    base: KnownLayers | None
    """None if it is not at hand."""


Fold = Callable[[Layer, Parts], tuple[Factors, float]]
"""Layer and its tensors -> factors, and the relative error."""
Merge = Callable[[Layer, Parts, Wide], Wide]
"""Layer, its tensors and the base's weight -> the merged weight."""


@dataclass(frozen=True, slots=True)
class Method:
    """How adapters of one method are converted."""

    fields: Fields
    alpha: str | None
    """Field that gives the scale, divided by the rank; None if `fold` applies all scales itself."""
    default_rank: int
    endings: tuple[str, ...]
    fold: Fold | None = None
    """None if the update has full rank; then `merge` is used."""
    merge: Merge | None = None
    needs_merge: Callable[[Mapping[str, object]], bool] = lambda _: False
    """Config -> whether `merge` is used; without `fold` it always is."""
    changes_bias: bool = False
    """Whether `merge` also changes the base's bias, which is passed as a column."""
    shared: tuple[str, ...] = ()
    """Prefixes of the names of tensors that all layers share."""
    bias_only: str = ""
    """Value of `bias` that trains only biases of adapted layers; empty if there is no field."""
    keeps_dtype: bool = False
    """Whether factors are stored in the saved dtype; else in float32."""
    added_bias: str = ""
    """Which of `endings` is a vector added to the layer's output; empty if none."""


@dataclass(frozen=True, slots=True)
class Folded:
    """The result for one layer."""

    module: str
    rank: int
    error: float
    """Relative error by norm; 0 if exact."""


def fold(
    source: Path,
    output: Output,
    method: Method,
    *,
    notes: Mapping[str, object | None] | None = None,
    max_error: float = MAX_ERROR,
    base: KnownLayers | None = None,
) -> list[Folded]:
    """Write the folder `source`, an adapter of `method`, to `output` as a LoRA package.

    Methods with a full-rank update become full weights instead; see `FullWeights`.

    Raises:
        PackageError: The folder is not such an adapter, has an unsupported field, or a layer
            would lose more than `max_error`.
    """
    config = read_config(source)
    refuse_unsupported(config, method.fields)
    as_lora, checked = _as_lora(config, method)
    done: list[Folded] = []
    updates: list[Update] = []
    merges: dict[str, Change] = {}
    with open_tensors(source) as file:
        header = read_header(
            file,
            os.fstat(file.fileno()).st_size,
            is_foreign=True,
            item_bytes=ITEM_BYTES | INTEGER_BYTES,
            max_dimensions=4,
        )
        read = tensor_reader(file, header.data_start)
        shared = {n: each for n, each in header.tensors.items() if n.startswith(method.shared)}
        others = {name: each for name, each in header.tensors.items() if name not in shared}
        apart = {n: each for n, each in others.items() if not n.endswith(method.endings)}
        saved = saved_tensors(apart, saved_names(config))
        if checked.bias is not Bias.NONE:
            saved |= {name: each for name, each in others.items() if name.endswith(".bias")}
        own = {name: each for name, each in others.items() if name not in saved}
        dtypes = {tensor.dtype for tensor in (*own.values(), *shared.values())} - set(INTEGER_BYTES)
        common = finite_values(shared, read)
        for module, tensors in modules_of(own, method.endings):
            if not checked.targets(module):
                raise not_targeted(module, "layers_to_transform")
            parts = {**common, **finite_values(tensors, read)}
            layer = Layer(module, checked.rank_of(module), config, base)
            if method.merge and (not method.fold or method.needs_merge(config)):
                merges[module] = partial(method.merge, layer, parts)
                continue
            assert method.fold
            (b_OR, a_RI), error = method.fold(layer, parts)
            if not error <= max_error:
                raise PackageError(
                    f"module {module}: its update has a rank above {MAX_RANK}, and the nearest one "
                    f"of rank {MAX_RANK} has error {error:.3g}, above the limit of {max_error:g}",
                    "UNSUPPORTED_ADAPTER_FEATURE",
                )
            scale = checked.scale_of(module) if method.alpha else 1.0
            bias_O = parts[method.added_bias].reshape(-1) if method.added_bias else None
            update = Update(module, scale, a_RI.astype(np.float32), b_OR.astype(np.float32), bias_O)
            updates.append(update)
            done.append(Folded(module, update.rank, error))
        if not updates and not merges:
            raise PackageError(f"{source} has no adapter tensors")
        kept = (saved, read)
        if merges:
            layers = FullWeights(merges, base, changes_bias=method.changes_bias)
            layers.write(as_lora, output, notes=notes or {}, source=source, saved=kept)
            return []
        dtype = dtypes.pop() if method.keeps_dtype and len(dtypes) == 1 else "F32"
        write_updates(as_lora, updates, dtype, output, notes=notes or {}, source=source, saved=kept)
    return done


def _as_lora(config: Mapping[str, object], method: Method) -> tuple[dict[str, object], LoraConfig]:
    """Return `config` as a LoRA config, raw and validated."""
    kept = {name: config[name] for name in _KEPT if name in config}
    rank = config.get("r", method.default_rank) if "r" in method.fields.honoured else 1
    as_lora = {**kept, "peft_type": "LORA", "r": rank}
    if method.alpha:
        as_lora["lora_alpha"] = config.get(method.alpha, 8)
    if method.added_bias:
        as_lora["lora_bias"] = True
    if method.bias_only and config.get("bias") == method.bias_only:
        as_lora["bias"] = str(Bias.LORA_ONLY)
    return as_lora, check_config(as_lora)


def finite_values(
    tensors: Mapping[str, TensorInfo], read: ReadTensor
) -> dict[str, npt.NDArray[Any]]:
    """Return the values of `tensors`.

    Raises:
        PackageError: A value is NaN or infinite.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for key, tensor in tensors.items():
        raw = b"".join(read(tensor))
        values = (integers if tensor.dtype in INTEGER_BYTES else decoded)(raw, tensor.dtype)
        if not np.isfinite(values).all():
            raise PackageError(
                f"tensor {tensor.name}: a weight is NaN or infinite", "ADAPTER_NOT_FINITE"
            )
        found[key] = values.reshape(tensor.shape)
    return found


def modules_of(
    tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, TensorInfo]]]:
    """Yield each layer and its tensors by the suffixes of their names.

    Raises:
        PackageError: A tensor has none of the suffixes `endings`, or is empty.
    """
    named = ", ".join(map(repr, endings))
    served = f"{named}, or tensors of modules in modules_to_save"
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        module, ending = split_name(name, endings, served)
        found.setdefault(module, {})[ending] = tensor
    for module, parts in sorted(found.items()):
        for tensor in parts.values():
            if not tensor.shape or 0 in tensor.shape:
                shape = shown(tensor.shape)
                raise PackageError(f"tensor {tensor.name}: shape {shape} has no elements")
        yield module, parts


def part(layer: Layer, parts: Parts, name: str) -> npt.NDArray[Any]:
    """Return one tensor of a layer.

    Raises:
        PackageError: It is missing.
    """
    if name not in parts:
        raise PackageError(f"module {layer.module} has no {name.removeprefix('.')}")
    return parts[name]


def shaped(layer: Layer, parts: Parts, name: str, *shape: int | None) -> Wide:
    """Return one tensor of a layer in float64, checked to have `shape`; None is any size.

    Raises:
        PackageError: It is missing, or has another shape.
    """
    values = part(layer, parts, name)
    fits = len(values.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise PackageError(
            f"module {layer.module}: {name.rpartition('.')[2]} has shape {shown(values.shape)}, "
            f"not ({sizes})"
        )
    return values.astype(np.float64)


def within_limit(b_OR: Wide, a_RI: Wide) -> tuple[Factors, float]:
    """Return the factors, or the nearest ones of the maximum rank, and the relative error."""
    if len(a_RI) <= MAX_RANK:
        return (b_OR, a_RI), 0.0
    found = spectrum((b_OR, a_RI))
    return nearest(found.u_OK, found.s_K, found.v_KI)


def nearest(u_OK: Wide, s_K: Wide, v_KI: Wide) -> tuple[Factors, float]:
    """Return the factors of the nearest matrix of the maximum rank, and the relative error.

    Args:
        u_OK: Left singular vectors.
        s_K: Singular values, largest first.
        v_KI: Right singular vectors.
    """
    root_R = np.sqrt(s_K[:MAX_RANK])
    whole = norm(s_K)
    error = norm(s_K[MAX_RANK:]) / whole if whole else 0.0
    return (u_OK[:, :MAX_RANK] * root_R, root_R[:, None] * v_KI[:MAX_RANK]), error
