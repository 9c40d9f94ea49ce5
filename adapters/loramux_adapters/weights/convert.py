"""Conversion of an adapter to another dtype or to lower ranks."""

from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.manifest import with_step
from loramux_adapters.package import Package, digest_of, read_package
from loramux_adapters.packing import write_package
from loramux_adapters.plain import require_low_rank
from loramux_adapters.tensorfile import ITEM_BYTES, TensorInfo, tensor_reader
from loramux_adapters.weights.diff import diff_of_updates
from loramux_adapters.weights.dtypes import decoded, dtype_named
from loramux_adapters.weights.spectrum import factors, spectrum
from loramux_adapters.weights.update import Update, dtype_of, read_updates, stored, write_updates


@dataclass(frozen=True, slots=True)
class Converted:
    """The result for one module."""

    module: str
    rank_before: int
    rank: int
    energy: float
    """Share of the squared singular values that is kept."""
    error: float
    """Relative error of what was written, rounding included, by norm; 0 for a zero module."""


def convert(
    file: BinaryIO,
    package: Package,
    output: BinaryIO,
    *,
    dtype: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
) -> list[Converted]:
    """Write a converted form of `package`, which is open as `file`, to `output`.

    Args:
        file: The package.
        package: The parsed package.
        output: An empty file, also open for reading: errors are measured on what was written.
        dtype: A name such as `bfloat16`; the package's dtype if None.
        rank: Maximum rank of each module; the largest singular values are kept.
        energy: Instead of `rank`: the lowest rank of each module that keeps this share.

    Raises:
        PackageError: An argument is out of range, or a weight is not finite.
    """
    if rank is not None and energy is not None:
        raise PackageError("give rank or energy, not both", "INVALID_FIELD")
    if rank is not None and rank < 1:
        raise PackageError(f"rank is {rank}; it must be 1 or more", "INVALID_FIELD")
    if energy is not None and not 0 < energy <= 1:
        raise PackageError(f"energy is {energy:g}; it must be above 0, up to 1", "INVALID_FIELD")
    wanted = dtype_of(package) if dtype is None else dtype_named(dtype)
    step: dict[str, object] = {"made_by": "loramux convert", "of": digest_of(file), "dtype": wanted}
    step |= {name: value for name, value in (("rank", rank), ("energy", energy)) if value}
    notes = with_step(package.notes, step)
    kept = {module.module: 1.0 for module in package.modules}
    if rank is None and energy is None:
        _write_as(wanted, file, package, output, notes)
    else:
        require_low_rank(package, "rank reduction")
        updates = []
        for update in read_updates(file, package):
            lower, kept[update.module] = _reduced(update, rank, energy)
            updates.append(lower)
        write_updates(package.peft_config, updates, wanted, output, notes=notes)
    written = read_package(output, output.tell())
    differences = diff_of_updates((file, package), (output, written)).modules
    return [
        Converted(
            module=before.module,
            rank_before=before.rank,
            rank=after.rank,
            energy=kept[before.module],
            error=each.distance / each.norms[0] if each.norms[0] else 0.0,
        )
        for before, after, each in zip(package.modules, written.modules, differences, strict=True)
    ]


def _reduced(update: Update, rank: int | None, energy: float | None) -> tuple[Update, float]:
    """Return the update with its rank reduced if necessary, and the share of energy kept."""
    if not update.is_finite():
        raise PackageError(
            f"module {update.module}: a weight is NaN or infinite", "ADAPTER_NOT_FINITE"
        )
    found = spectrum(factors(update))
    shares = np.cumsum(found.s_K**2)
    total = shares[-1]
    if energy is not None:
        rank = int(np.searchsorted(shares, energy * total)) + 1
    assert rank is not None
    if rank >= update.rank:
        return update, 1.0
    lower = found.best(update.module, rank)
    return lower, float(shares[lower.rank - 1] / total) if total else 1.0


def _write_as(
    dtype: str, file: BinaryIO, package: Package, output: BinaryIO, notes: dict[str, object]
) -> None:
    """Write the tensors of `package` in `dtype`, with the config unchanged."""
    read = tensor_reader(file, package.file.data_start)
    before = package.tensors

    def piece(tensor: TensorInfo) -> list[bytes]:
        values = decoded(b"".join(read(before[tensor.name])), before[tensor.name].dtype)
        return [stored(values, dtype, f"tensor {tensor.name}")]

    after = {
        name: replace(
            tensor,
            dtype=dtype,
            num_bytes=tensor.num_bytes // ITEM_BYTES[tensor.dtype] * ITEM_BYTES[dtype],
        )
        for name, tensor in before.items()
    }
    write_package(package.peft_config, after, piece, output, notes=notes)
