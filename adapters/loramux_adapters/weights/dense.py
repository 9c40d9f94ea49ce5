"""Methods with full-rank updates, or with factors for single weights.

Methods: SHiRA (arXiv 2406.13175), RandLoRA (arXiv 2502.00987), C3A (arXiv 2407.19342), HiRA. Fields
and tensors: `peft.tuners.shira`, `peft.tuners.supertuning`, `peft.tuners.randlora`,
`peft.tuners.c3a` and `peft.tuners.hira`, PEFT 0.21.

Legend: I input features, O output features, R rank, D bases, H inputs of a block, M and N blocks.
"""

import numpy as np
import numpy.typing as npt

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import alpha
from loramux_adapters.weights.fold import Layer, Method, Parts, part, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Wide

_NO_BIAS = {"bias": "biases are not supported with it"}
_NONE = {"bias": ("none",)}
_NO_LAYERS = ("exclude_modules", "layers_to_transform", "layers_pattern")
_RANDLORA_A, _RANDLORA_B = ".randlora_A", ".randlora_B"


def _shira(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    """SHiRA adds values to some of the weights, given by row and column."""
    values = shaped(layer, parts, ".shira_weight", None)
    rows, columns = _indices(layer, parts, ".shira_indices", (2, len(values)), weight_OI.shape)
    return _added(weight_OI, rows * weight_OI.shape[1] + columns, values)


def _supertuning(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    """Supertuning does so, too, with flat row-major indices."""
    values = shaped(layer, parts, ".supertuning_values", None)
    places = _indices(
        layer, parts, ".supertuning_indices", (1, len(values)), (weight_OI.size,)
    )  # fmt: skip
    return _added(weight_OI, places[0], values)


def _randlora(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    """RandLoRA adds a sum of random matrices of rank R with learned diagonal scales."""
    low, high = sorted(weight_OI.shape)
    count = -(-low // layer.rank)
    a = shaped(layer, parts, _RANDLORA_A, layer.rank, None, None)[:, :count, :low]
    b = shaped(layer, parts, _RANDLORA_B, None, None, layer.rank)[:high, :count]
    numbers_RD = shaped(layer, parts, ".randlora_lambda", layer.rank, count)
    scales = shaped(layer, parts, ".randlora_gamma", count, low)
    if a.shape[2] < low or b.shape[:2] != (high, count):
        raise PackageError(
            f"module {layer.module}: its random matrices are smaller than its weight"
        )
    right = (numbers_RD[:, :, None] * a * scales).reshape(-1, low)
    sum_OI = b.reshape(high, -1) @ right
    scale = alpha(layer.config.get("randlora_alpha", 640), "randlora_alpha") / layer.rank
    return weight_OI + scale * (sum_OI if weight_OI.shape[1] == low else sum_OI.T)


def _c3a(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    """C3A adds circulant blocks."""
    kernel_MNH = shaped(layer, parts, ".c3a_kernel", None, None, None)
    rows, columns, size = kernel_MNH.shape
    if (rows * size, columns * size) != weight_OI.shape:
        raise PackageError(
            f"module {layer.module}: {rows} times {columns} blocks of {size} do not match "
            f"{weight_OI.shape[0]} outputs and {weight_OI.shape[1]} inputs"
        )
    moved = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size  # [output, input]
    blocks = kernel_MNH[:, :, moved].transpose(0, 2, 1, 3).reshape(weight_OI.shape)
    changed: Wide = weight_OI + blocks / weight_OI.shape[1]
    return changed


def _hira(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    """HiRA adds the weight multiplied elementwise by a matrix of rank R."""
    a_RI = shaped(layer, parts, ".hira_A", layer.rank, weight_OI.shape[1])
    b_OR = shaped(layer, parts, ".hira_B", weight_OI.shape[0], layer.rank)
    return weight_OI * (1 + b_OR @ a_RI)


def _indices(
    layer: Layer, parts: Parts, name: str, shape: tuple[int, int], limits: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Return integer indices, one row per entry of `limits`, checked to be below that limit."""
    found = part(layer, parts, name)
    rows = found.reshape(shape) if found.size == shape[0] * shape[1] else None
    if rows is None or not all(
        ((row >= 0) & (row < limit)).all() for row, limit in zip(rows, limits, strict=True)
    ):
        raise PackageError(
            f"module {layer.module}: {name.removeprefix('.')} are not {shape[1]} valid indices"
        )
    return rows


def _added(weight_OI: Wide, places: npt.NDArray[np.int64], values: Wide) -> Wide:
    """Return the weight with `values` added at the flat row-major indices `places`."""
    found = weight_OI.flatten()
    np.add.at(found, places, values)
    return found.reshape(weight_OI.shape)


SHIRA = Method(
    folded_fields(
        {"r"}, {"mask_type", "random_seed"}, absent=(*_NO_LAYERS, "bias")
    ),
    None,
    32,
    (".shira_weight", ".shira_indices"),
    merge=_shira,
)  # fmt: skip
SUPERTUNING = Method(
    folded_fields(
        (),
        {"sparsity", "select_top", "lora_dropout"},
        absent=(*_NO_LAYERS, "bias", "fan_in_fan_out"),
        refused={
            "r": "a LoRA beside the sparse update is not supported",
            "lora_alpha": "a LoRA beside the sparse update is not supported",
            "save_precomputed_indices": "PEFT selects its indices in the base again at each load; "
            "save the adapter with save_precomputed_indices=True",
        },
        harmless={"save_precomputed_indices": (True,)},
    ),
    None,
    8,
    (".supertuning_values", ".supertuning_indices"),
    merge=_supertuning,
)
RANDLORA = Method(
    folded_fields(
        {"r", "randlora_alpha"},
        {"projection_prng_key", "save_projection", "sparse", "very_sparse", "randlora_dropout"},
        absent={"exclude_modules"},
        refused=_NO_BIAS,
        harmless=_NONE,
    ),
    None,
    32,
    (_RANDLORA_A, _RANDLORA_B, ".randlora_lambda", ".randlora_gamma"),
    merge=_randlora,
    shared=("base_model.randlora_",),
)
C3A = Method(
    folded_fields(
        {"block_size", "block_size_pattern"},
        (),
        absent={"exclude_modules", "fan_in_fan_out"},
        refused=_NO_BIAS,
        harmless=_NONE,
    ),
    None,
    8,
    (".c3a_kernel",),
    merge=_c3a,
)
HIRA = Method(
    folded_fields({"r", "rank_pattern"}, {"hira_dropout"}, absent={"bias"}),
    None,
    32,
    (".hira_A", ".hira_B"),
    merge=_hira,
)
