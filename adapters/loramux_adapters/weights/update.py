"""Low-rank updates of one layer's weight, as two factors.

Shapes: R rank, I input features, O output features.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.experts import ExpertLora
from loramux_adapters.lora import LoraModule
from loramux_adapters.package import Package
from loramux_adapters.packing import Output, write_package
from loramux_adapters.peft_config import check_config
from loramux_adapters.tensorfile import ITEM_BYTES, ReadTensor, TensorInfo, tensor_reader
from loramux_adapters.weights.dtypes import Array, decoded, encoded


@dataclass(frozen=True, slots=True)
class Update:
    """The update `scale * b_OR @ a_RI` of one layer."""

    module: str
    scale: float
    a_RI: Array
    b_OR: Array
    bias_O: Array | None = None
    """Vector that is added to the layer's output; None for none."""

    @property
    def rank(self) -> int:
        """Rows of A and columns of B."""
        return len(self.a_RI)

    def is_finite(self) -> bool:
        """Return whether no weight is NaN or infinite."""
        return bool(np.isfinite(self.a_RI).all() and np.isfinite(self.b_OR).all())


def read_update(file: BinaryIO, package: Package, module: LoraModule) -> Update:
    """Return the update of `module`, a module of `package`, which is open as `file`."""
    return Update(module.module, module.scale, *_read(file, package, module))


def _read(file: BinaryIO, package: Package, change: LoraModule | ExpertLora) -> tuple[Array, Array]:
    """Return A and B of `change`, unscaled."""
    read = tensor_reader(file, package.file.data_start)
    a, b = (
        decoded(b"".join(read(tensor)), tensor.dtype).reshape(tensor.shape)
        for tensor in (change.a, change.b)
    )
    return a, b


def read_updates(file: BinaryIO, package: Package) -> Iterator[Update]:
    """Yield the updates of `package`, which is open as `file`; see `read_low_rank`."""
    return (update for _, update in read_low_rank(file, package))


def read_low_rank(
    file: BinaryIO, package: Package
) -> Iterator[tuple[LoraModule | ExpertLora, Update]]:
    """Yield each low-rank change of `package`, which is open as `file`, with its update.

    Changes of experts are yielded once for each expert. One is in memory at a time.
    """
    for module in package.modules:
        yield module, read_update(file, package, module)
    for change in package.contents.experts:
        a, b = _read(file, package, change)
        a_ERI = a.reshape(change.num_experts, change.rank, -1)
        b_ORE = b.reshape(len(b), change.rank, change.num_experts)
        for number, a_RI in enumerate(a_ERI):
            name = f"{change.module}.{number}.{change.projection}"
            yield change, Update(name, change.scale, a_RI, b_ORE[:, :, number])


def dtype_of(package: Package) -> str:
    """Return the common dtype of the tensors of `package`, or float32."""
    found = {tensor.dtype for tensor in package.file.tensors.values()}
    return found.pop() if len(found) == 1 else "F32"


def stored(values: Array, dtype: str, what: str) -> bytes:
    """Return `values` as bytes of `dtype`.

    Raises:
        PackageError: A value is not finite in `dtype`; the message begins with `what`.
    """
    raw = encoded(values, dtype)
    if not np.isfinite(decoded(raw, dtype)).all():
        fault = "a weight is NaN or infinite"
        if np.isfinite(values).all():
            fault = f"a weight of {np.abs(values).max():g} is too large for dtype {dtype}"
        raise PackageError(f"{what}: {fault}", "ADAPTER_NOT_FINITE")
    return raw


def write_updates(
    peft_config: Mapping[str, object],
    updates: list[Update],
    dtype: str,
    output: Output,
    *,
    notes: Mapping[str, object],
    source: Path | None = None,
    saved: tuple[Mapping[str, TensorInfo], ReadTensor] = ({}, lambda _: ()),
) -> None:
    """Write a package of `updates`, with the other fields of `peft_config`, to `output`.

    Notes found in the folder `source`, if given, are added to `notes`. `saved` are tensors that are
    copied unchanged, and the reader of their bytes. `r`, `lora_alpha`, `use_rslora` and the
    patterns are set to match the updates; the rest of the scales is folded into the factors.
    """
    counts = Counter(update.rank for update in updates)
    rank = max(counts, key=lambda rank: (counts[rank], rank))
    # Longer names first, because a shorter one may be a suffix of a longer one.
    others = sorted((u for u in updates if u.rank != rank), key=lambda u: -len(u.module))
    config = {
        **peft_config,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    key_of = check_config(config).key_of
    config["rank_pattern"] = {key_of(update.module): update.rank for update in others}
    kept, read_kept = saved
    tensors: dict[str, TensorInfo] = dict(kept)
    arrays: dict[str, Array] = {}
    for update in updates:
        factors = _balanced(update, update.scale * update.rank / rank)
        for half, array in zip("AB", factors, strict=True):
            name = f"base_model.model.{update.module}.lora_{half}.weight"
            num_bytes = array.size * ITEM_BYTES[dtype]
            tensors[name] = TensorInfo(name, dtype, array.shape, 0, num_bytes)
            arrays[name] = array
        if update.bias_O is not None:
            name = f"base_model.model.{update.module}.lora_B.bias"
            tensors[name] = TensorInfo(
                name, dtype, update.bias_O.shape, 0, update.bias_O.size * ITEM_BYTES[dtype]
            )
            arrays[name] = update.bias_O

    def read(tensor: TensorInfo) -> Iterable[bytes]:
        if tensor.name in kept:
            return read_kept(tensor)
        return [stored(arrays[tensor.name], dtype, f"tensor {tensor.name}")]

    write_package(config, tensors, read, output, notes=notes, source=source)


def _balanced(update: Update, left: float) -> tuple[Array, Array]:
    """Return A and B with `left` multiplied in, balanced so that float16 underflows in neither."""
    largest_a, largest_b = (float(np.abs(half).max()) for half in (update.a_RI, update.b_OR))
    exponent = 0
    if largest_a and largest_b:
        exponent = round(math.log2(largest_b * left / largest_a) / 2)
    # Scaling by a power of 2 is exact.
    return update.a_RI * np.float32(2.0**exponent), update.b_OR * np.float32(left / 2.0**exponent)
