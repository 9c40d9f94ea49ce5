"""Adapters in host memory: loads packages into the layout that the slab takes."""

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from loramux_adapters import Package, read_package
from loramux_adapters.base_names import is_vision_module
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.files import PASSING
from loramux_adapters.fit import no_layer
from loramux_adapters.head import HeadShape
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.weights.dtypes import Array, decoded
from loramux_server.lora.edits import Edits
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.segments import Residence
from loramux_server.lora.streaming_file import Reader, StreamingFile
from loramux_server.lora.weights import Weights, read_weights
from loramux_server.lora.yield_cpu import yield_cpu
from loramux_server.wire.weight_format import AS_SAVED, StorageFormat, WeightFormat, format_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """The place of a base layer: its group, and its part in the group."""

    group: int
    part: int


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """The low-rank change of one layer."""

    place: LayerPlace
    a_RK: Weights
    b_RN: Weights
    """B transposed, so that a rank row is contiguous."""


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """All changes of one adapter, in one weight format."""

    rank: int
    """The largest rank of any layer."""
    format: WeightFormat
    layers: list[PackedLayer]
    rank_GP: npt.NDArray[np.int32]
    scale_GP: npt.NDArray[np.float32]
    row_item_bytes: int = 4
    """Bytes per weight that the slab's rows are sized for."""
    blob: "torch.Tensor | None" = None
    """One buffer with all weights in slab layout; None if each layer has its own memory."""
    edits: Edits | None = None
    """Changes besides the low-rank ones."""

    @property
    def num_rows(self) -> int:
        """Rank rows that its A and B take in a slab."""
        return RowSize(item_bytes=self.row_item_bytes).rows_of(self.rank, self.format.item_bytes)

    def at(self, row: int, edits: Edits | None = None) -> Residence:
        """Return the adapter's residence in a slab from `row` on.

        Args:
            row: Its first row.
            edits: Its edits on the device.
        """
        return Residence(
            row, self.num_rows, self.format, self.rank_GP, self.scale_GP, edits, self.kinds()
        )

    def kinds(self) -> npt.NDArray[np.int32] | None:
        """Return `Affine.kinds` of each layer, [G, P]; None if there is none."""
        if not self.edits or not self.edits.affine:
            return None
        kinds_GP = np.zeros_like(self.rank_GP)
        for group, parts in self.edits.affine.items():
            for part, affine in parts.items():
                kinds_GP[group, part] = affine.kinds
        return kinds_GP


Place = Callable[[PackedAdapter], PackedAdapter]
"""Copies an adapter's weights into memory of their own; see `Slab.pack`."""
_reader = Reader()


class DamagedError(Exception):
    """The stored bytes are missing, or are not those that were registered."""

    reason = "ADAPTER_DAMAGED"


class UnreadableError(DamagedError):
    """The stored bytes cannot be read at present, for a transient cause; they may be intact."""

    reason = "STORE_UNAVAILABLE"


class Base(Protocol):
    """The base model that an adapter is packed for."""

    @property
    def places(self) -> Mapping[str, LayerPlace]:
        """Name of each layer that an adapter may change -> its group and part."""

    @property
    def experts(self) -> Mapping[str, ExpertsShape]:
        """Name of each experts module that an adapter may change -> its shape."""

    @property
    def vision_modules(self) -> Collection[str]:
        """Names of the vision modules."""

    @property
    def no_vision_reason(self) -> str:
        """Why images are not supported; empty if they are."""

    @property
    def head_shapes(self) -> Mapping[str, HeadShape]:
        """The modules after the layers, by task; see `ModelInfo.heads`."""

    @property
    def num_groups(self) -> int:
        """Number of groups of layers."""

    @property
    def max_parts(self) -> int:
        """Most layers of a group."""

    def edits(self, package: Package, read: Callable[[TensorInfo], Array]) -> Edits | None:
        """Return the edits of `package`, besides rank rows; `read` returns its tensors.

        Raises:
            PackageError: The base does not support an edit.
        """


def load_packed(
    path: Path,
    digest: str,
    base: Base,
    storage_format: StorageFormat = AS_SAVED,
    place: Place | None = None,
    *,
    seal: str = "",
) -> PackedAdapter:
    """Read the package at `path` into memory, verify it against `digest` and pack it.

    Args:
        path: The package.
        digest: The expected digest of its bytes.
        base: The base model.
        storage_format: The storage format.
        place: Copies all weights into their final memory; if None, each is copied as it is read.
        seal: The expected seal (fast hash) of its bytes; empty if unknown.

    Raises:
        DamagedError: The file is absent or its bytes do not have `digest`.
        UnreadableError: They cannot be read, for a transient cause.
        PackageError: The package does not fit the base model.
    """
    with open_streaming(path, digest, seal) as file:
        return _packed(file, base, storage_format, place)


@contextmanager
def open_streaming(path: Path, digest: str, seal: str) -> Iterator[StreamingFile]:
    """Read the package at `path` while the block runs; see `load_packed`.

    Raises:
        DamagedError: It is absent or cannot be read.
        UnreadableError: It cannot be read, for a transient cause.
    """
    try:
        with _reader.reading(path, digest, seal) as file:
            yield file
    except OSError as error:
        kind = UnreadableError if error.errno in PASSING else DamagedError
        raise kind(f"cannot be read: {error.strerror}") from None


@contextmanager
def verified(file: StreamingFile) -> Iterator[None]:
    """Verify the bytes of `file` at the end of the block.

    Raises:
        DamagedError: They are wrong. This replaces any error of the block: contents of damaged
            files are not reported on.
    """
    try:
        yield
    finally:
        if not file.is_right():
            raise DamagedError("its bytes do not match the digest that it was registered with")


def package_in(file: StreamingFile, base: Base) -> Package:
    """Parse the package in `file`, and return it with module names of `base`.

    Raises:
        PackageError: It cannot be served, or changes vision modules that `base` lacks.
    """
    header = file[: 8 + int.from_bytes(file[:8], "little")]
    package = read_package(io.BytesIO(header), len(file))
    package = package.named_for(base.places, base.experts, base.vision_modules, base.head_shapes)
    if base.no_vision_reason:  # it may have been registered on a server with images enabled
        for module in package.contents.changed_modules:
            if is_vision_module(module) and module not in base.places:
                raise no_layer(module, base.no_vision_reason)
    return package


def take_seals() -> dict[str, str]:
    """Return the seals computed from files since the last call: digest -> seal."""
    return _reader.seals.take()


def _packed(
    file: StreamingFile, base: Base, storage_format: StorageFormat, place: Place | None
) -> PackedAdapter:
    """Pack the package in `file` while it is read; return nothing before its digest is verified."""
    with verified(file):
        package = package_in(file, base)
        form = storage_format.of(format_of(package))
        rank_GP = np.zeros((base.num_groups, base.max_parts), np.int32)
        scale_GP = np.zeros((base.num_groups, base.max_parts), np.float32)
        layers = []

        def raw(tensor: TensorInfo) -> memoryview:
            begin = package.file.data_start + tensor.offset
            return file[begin : begin + tensor.num_bytes]

        for module in package.modules:
            at = base.places.get(module.module)
            if at is None and module.is_outer:
                continue  # an edit
            if at is None:
                raise no_layer(module.module, layers=base.places)
            rank_GP[at.group, at.part] = module.rank
            scale_GP[at.group, at.part] = module.scale
            a_RK = read_weights(module.a, raw(module.a), form)
            b_RN = read_weights(module.b, raw(module.b), form).T
            if place is None:
                a_RK, b_RN = a_RK.copy(), b_RN.copy()
            layers.append(PackedLayer(at, a_RK, b_RN))
            yield_cpu()

    def values(tensor: TensorInfo) -> Array:
        return decoded(raw(tensor), tensor.dtype).reshape(tensor.shape)

    adapter = PackedAdapter(
        package.rank, form, layers, rank_GP, scale_GP, storage_format.row_item_bytes,
        edits=base.edits(package, values),
    )  # fmt: skip
    return place(adapter) if place else adapter
