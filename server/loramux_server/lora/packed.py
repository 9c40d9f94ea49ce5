"""An adapter in host memory: its weights in the order in which the slab takes them."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loramux_adapters import LoraModule, Package, PackageError, read_package
from loramux_adapters.tensorfile import TensorInfo

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where a layer of the base is found among the groups."""

    group: int
    part: int


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """The low-rank change of one layer, scale folded into B."""

    place: LayerPlace
    a_RK: Float32
    b_RN: Float32
    """B transposed, so that a rank row is contiguous."""


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """All changes of one adapter."""

    rank: int
    """The largest rank of any layer."""
    layers: list[PackedLayer]
    rank_GP: npt.NDArray[np.int32]


class DamagedError(Exception):
    """The stored bytes are not those that were registered."""


def load_packed(
    path: Path, digest: str, places: dict[str, LayerPlace], num_groups: int, max_parts: int
) -> PackedAdapter:
    """Read the package at `path` into memory, check it against `digest` and pack it.

    Raises:
        DamagedError: The file is absent or its bytes do not have `digest`.
        PackageError: The package does not fit the base model.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}") from None
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise DamagedError("its bytes do not have the digest that it was registered with")
    package = read_package(io.BytesIO(data), len(data))
    rank_GP = np.zeros((num_groups, max_parts), np.int32)
    layers = []
    for module in package.modules:
        place = places.get(module.module)
        if place is None:
            raise PackageError(f"module {module.module} is not in the base model")
        rank_GP[place.group, place.part] = module.rank
        layers.append(_pack(module, package, place, data))
    return PackedAdapter(package.rank, layers, rank_GP)


def read_float32(tensor: TensorInfo, data_start: int, data: bytes | memoryview) -> Float32:
    """Return a copy of `tensor` of the file `data` as float32, in its own shape."""
    begin = data_start + tensor.offset
    raw = memoryview(data)[begin : begin + tensor.num_bytes]
    if tensor.dtype == "BF16":
        # bfloat16 is the upper half of float32.
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
        values = wide.view(np.float32)
    elif tensor.dtype == "F16":
        values = np.frombuffer(raw, "<f2").astype(np.float32)
    else:
        values = np.frombuffer(raw, "<f4").copy()
    return values.reshape(tensor.shape)


def _pack(module: LoraModule, package: Package, place: LayerPlace, data: bytes) -> PackedLayer:
    start = package.file.data_start
    a_RK = read_float32(module.a, start, data)
    b_NR = read_float32(module.b, start, data)
    return PackedLayer(place, a_RK, np.multiply(b_NR.T, np.float32(module.scale), order="C"))
