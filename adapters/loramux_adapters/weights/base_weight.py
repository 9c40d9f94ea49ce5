"""Sizes and weights of the base's layers, for converting adapters.

Legend: I input features, O output features.
"""

from pathlib import Path

from loramux_adapters.base import BaseFolder, BaseLayer
from loramux_adapters.errors import PackageError
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.tensorfile import ITEM_BYTES
from loramux_adapters.weights.dtypes import Array, decoded

_GIVE = (
    "give the base model with `loramux pack --base`; its checkpoint must have a layer of that name"
)


def features(base: KnownLayers | None, module: str, method: str) -> tuple[int, int]:
    """Return (in_features, out_features) of the layer `module`.

    Raises:
        PackageError: `base` is not given, or has no such layer.
    """
    found = base.features_of(module) if base else None
    if found is None:
        raise PackageError(
            f"module {module}: {method} does not save the number of inputs of a layer; {_GIVE}",
            "ADAPTER_BASE_MISMATCH",
        )
    return found


def weight(base: KnownLayers | None, module: str, method: str) -> Array:
    """Return the weight of the layer `module`, [O, I].

    Raises:
        PackageError: The folder of `base` is not at hand, has no such layer, or is quantized.
        OSError: The folder cannot be read.
    """
    folder, layer = base_layer(base, module, method)
    found = stored_weight(folder.path, layer, module)
    return found.T if layer.is_transposed else found


def base_layer(base: KnownLayers | None, module: str, method: str) -> tuple[BaseFolder, BaseLayer]:
    """Return the layer `module`, and the folder with its weight.

    Raises:
        PackageError: The folder of `base` is not at hand, or has no such layer.
    """
    folder = base.folder if base else None
    layer = folder.layer_like(module) if folder else None
    if not folder or not layer:
        raise PackageError(
            f"module {module}: the update of {method} depends on the weight of the base; {_GIVE}",
            "ADAPTER_BASE_MISMATCH",
        )
    return folder, layer


def stored_weight(folder: Path, layer: BaseLayer, module: str) -> Array:
    """Return the weight of `layer` as stored in `folder`; errors call it `module`.

    Raises:
        PackageError: It is quantized.
        OSError: The file cannot be read.
    """
    tensor = layer.weight
    if tensor.dtype not in ITEM_BYTES:
        raise PackageError(
            f"module {module}: its weight in the base has dtype {tensor.dtype}; "
            f"expected one of {', '.join(ITEM_BYTES)}",
            "ADAPTER_BASE_MISMATCH",
        )
    with (folder / tensor.file).open("rb") as file:
        file.seek(tensor.offset)
        raw = file.read(tensor.num_bytes)
    return decoded(raw, tensor.dtype).reshape(tensor.shape)
