"""An adapter in host memory: its weights in the order in which the slab takes them."""

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from loramux_adapters import Package, read_package
from loramux_adapters.base_names import sees_images
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.files import PASSING
from loramux_adapters.fit import no_layer
from loramux_adapters.head import HeadShape
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.weights.dtypes import Array, decoded
from loramux_server.lora.arriving import Arriving, Reader
from loramux_server.lora.edits import Edits
from loramux_server.lora.give_way import give_way
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.segments import Residence
from loramux_server.lora.weights import Weights, read_weights
from loramux_server.wire.weight_format import AS_SAVED, Resting, WeightFormat, format_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where a layer of the base is found among the groups."""

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
    """All changes of one adapter, in one number format."""

    rank: int
    """The largest rank of any layer."""
    format: WeightFormat
    layers: list[PackedLayer]
    rank_GP: npt.NDArray[np.int32]
    scale_GP: npt.NDArray[np.float32]
    row_item_bytes: int = 4
    """Bytes of a weight for which the rows of the slab are made."""
    blob: "torch.Tensor | None" = None
    """The memory in which all weights lie, as a slab has them; None if each has its own."""
    edits: Edits | None = None
    """What it does beside its low-rank changes."""

    @property
    def num_rows(self) -> int:
        """Rank rows that its weights take in a slab."""
        return RowSize(item_bytes=self.row_item_bytes).rows_of(self.rank, self.format.item_bytes)

    def at(self, row: int, edits: Edits | None = None) -> Residence:
        """Return where the adapter is when it lies in a slab from `row` on.

        Args:
            row: The first of its rows.
            edits: Its own, as they are on the device.
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
"""Returns an adapter with its weights in memory of their own."""
_reader = Reader()


class DamagedError(Exception):
    """The stored bytes are not those that were registered."""

    reason = "ADAPTER_DAMAGED"


class UnreadableError(DamagedError):
    """The stored bytes cannot be read at present; they may be right."""

    reason = "STORE_UNAVAILABLE"


class Base(Protocol):
    """What an adapter is packed for."""

    @property
    def places(self) -> Mapping[str, LayerPlace]:
        """Where each layer is that an adapter may change."""

    @property
    def experts(self) -> Mapping[str, ExpertsShape]:
        """The experts that an adapter may change, by name."""

    @property
    def sight(self) -> Collection[str]:
        """Names of the modules that see images."""

    @property
    def blindness(self) -> str:
        """That it sees no images, and why; empty where it sees them."""

    @property
    def head_shapes(self) -> Mapping[str, HeadShape]:
        """What is behind the layers, by task; see `ModelInfo.heads`."""

    @property
    def num_groups(self) -> int:
        """Groups of layers."""

    @property
    def max_parts(self) -> int:
        """Most layers of a group."""

    def edits(self, package: Package, read: Callable[[TensorInfo], Array]) -> Edits | None:
        """Return what `package`, whose tensors `read` returns, does beside rank rows.

        Raises:
            PackageError: That cannot be done to the base.
        """


def load_packed(
    path: Path,
    digest: str,
    base: Base,
    resting: Resting = AS_SAVED,
    place: Place | None = None,
    *,
    seal: str = "",
) -> PackedAdapter:
    """Read the package at `path` into memory, check it against `digest` and pack it.

    Args:
        path: The package.
        digest: Identity that its bytes must have.
        base: What it is for.
        resting: In which format it rests.
        place: Puts weights where they stay; else each has memory of its own, as soon as it comes.
        seal: What its bytes have besides; empty if that is not known.

    Raises:
        DamagedError: The file is absent or its bytes do not have `digest`.
        UnreadableError: They cannot be read for a cause that may pass.
        PackageError: The package does not fit the base model.
    """
    with arriving(path, digest, seal) as file:
        return _packed(file, base, resting, place)


@contextmanager
def arriving(path: Path, digest: str, seal: str) -> Iterator[Arriving]:
    """Read the package at `path` while the block runs; see `load_packed`.

    Raises:
        DamagedError: It is absent or cannot be read.
        UnreadableError: Likewise, for a cause that may pass.
    """
    try:
        with _reader.reading(path, digest, seal) as file:
            yield file
    except OSError as error:
        kind = UnreadableError if error.errno in PASSING else DamagedError
        raise kind(f"cannot be read: {error.strerror}") from None


@contextmanager
def verified(file: Arriving) -> Iterator[None]:
    """End the block only when it is known that the bytes of `file` are right.

    Raises:
        DamagedError: They are not. Whatever was found wrong: of such bytes nothing more is said.
    """
    try:
        yield
    finally:
        if not file.is_right():
            raise DamagedError("its bytes do not have the digest that it was registered with")


def package_in(file: Arriving, base: Base) -> Package:
    """Return the package that is on its way in `file`, under the names of `base`.

    Raises:
        PackageError: It is none that can be served, or is for a base that sees images.
    """
    header = file[: 8 + int.from_bytes(file[:8], "little")]
    package = read_package(io.BytesIO(header), len(file))
    package = package.named_for(base.places, base.experts, base.sight, base.head_shapes)
    if base.blindness:  # it may have been registered where images were seen
        for module in package.contents.changed_modules:
            if sees_images(module) and module not in base.places:
                raise no_layer(module, base.blindness)
    return package


def take_seals() -> dict[str, str]:
    """Return, once, the seals that were found out of files: digest -> seal."""
    return _reader.seals.take()


def _packed(file: Arriving, base: Base, resting: Resting, place: Place | None) -> PackedAdapter:
    """Pack what is in `file` as it comes; nobody gets anything of it before its digest is known."""
    with verified(file):
        package = package_in(file, base)
        form = resting.of(format_of(package))
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
            give_way()

    def values(tensor: TensorInfo) -> Array:
        return decoded(raw(tensor), tensor.dtype).reshape(tensor.shape)

    adapter = PackedAdapter(
        package.rank, form, layers, rank_GP, scale_GP, resting.row_item_bytes,
        edits=base.edits(package, values),
    )  # fmt: skip
    return place(adapter) if place else adapter
