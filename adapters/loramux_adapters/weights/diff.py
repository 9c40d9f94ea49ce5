"""Distance between two adapters, layer by layer, regardless of their ranks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.package import Package
from loramux_adapters.plain import require_low_rank
from loramux_adapters.weights.spectrum import dot, factors, norm, singular_values, weighted_sum
from loramux_adapters.weights.update import Update, read_update


@dataclass(frozen=True, slots=True)
class Difference:
    """Distance between two updates of one layer; a missing update counts as zero."""

    module: str
    norms: tuple[float, float]
    distance: float
    """Frobenius norm of the difference."""
    cosine: float | None
    """Cosine similarity of the two updates; None if one is zero."""


@dataclass(frozen=True, slots=True)
class Diff:
    """All differences between two adapters."""

    config: Mapping[str, tuple[object, object]]
    """Fields of the PEFT config with different values, by name."""
    modules: list[Difference]
    total: Difference
    """All modules taken together."""


def diff(first: tuple[BinaryIO, Package], second: tuple[BinaryIO, Package]) -> Diff:
    """Return the differences between two packages, each with its open file.

    Raises:
        PackageError: They are for layers of different shapes, a weight is not finite, or one has
            other changes than low-rank updates.
    """
    for _, package in (first, second):
        require_low_rank(package, "diff")
    return diff_of_updates(first, second)


def diff_of_updates(first: tuple[BinaryIO, Package], second: tuple[BinaryIO, Package]) -> Diff:
    """Return the differences between two packages in their low-rank updates alone.

    Raises:
        PackageError: They are for layers of different shapes, or a weight is not finite.
    """
    modules = [
        {module.module: module for module in package.modules} for _, package in (first, second)
    ]
    differences, dots = [], []
    for name in sorted(modules[0].keys() | modules[1].keys()):
        updates = [
            read_update(file, package, found[name]) if name in found else None
            for (file, package), found in zip((first, second), modules, strict=True)
        ]
        difference, product = _of(name, *updates)
        differences.append(difference)
        dots.append(product)
    norms = [math.hypot(*(each.norms[side] for each in differences)) for side in (0, 1)]
    total = Difference(
        "(all)",
        (norms[0], norms[1]),
        math.hypot(*(each.distance for each in differences)),
        _cosine(math.fsum(dots), norms[0], norms[1]),
    )
    configs = first[1].peft_config, second[1].peft_config
    fields = {
        field: (configs[0].get(field), configs[1].get(field))
        for field in sorted(configs[0].keys() | configs[1].keys())
        if not _same(configs[0].get(field), configs[1].get(field))
    }
    return Diff(fields, differences, total)


def _of(name: str, first: Update | None, second: Update | None) -> tuple[Difference, float]:
    for update in (first, second):
        if update is not None and not update.is_finite():
            raise PackageError(f"module {name}: a weight is NaN or infinite", "ADAPTER_NOT_FINITE")
    norms = tuple(
        0.0 if update is None else norm(singular_values(factors(update)))
        for update in (first, second)
    )
    if first is None or second is None:
        return Difference(name, (norms[0], norms[1]), max(norms), None), 0.0
    check_shapes(name, [first, second])
    distance = 0.0
    if not _equal(first, second):
        distance = norm(singular_values(weighted_sum([first, second], [1.0, -1.0])))
    product = dot(first, second)
    cosine = _cosine(product, norms[0], norms[1])
    return Difference(name, (norms[0], norms[1]), distance, cosine), product


def check_shapes(name: str, updates: list[Update]) -> None:
    """Check that `updates` are for layers of the same shape."""
    shapes = [(update.a_RI.shape[1], update.b_OR.shape[0]) for update in updates]
    for shape in shapes[1:]:
        if shape != shapes[0]:
            raise PackageError(
                f"module {name} maps {shapes[0][0]} to {shapes[0][1]} features in one adapter, "
                f"but {shape[0]} to {shape[1]} in another: they are for different base models",
                "ADAPTER_BASE_MISMATCH",
            )


def _equal(first: Update, second: Update) -> bool:
    return (
        first.scale == second.scale
        and np.array_equal(first.a_RI, second.a_RI)
        and np.array_equal(first.b_OR, second.b_OR)
    )


def _cosine(product: float, first: float, second: float) -> float | None:
    if not first or not second:
        return None
    return max(-1.0, min(1.0, product / first / second))


def _same(first: object, second: object) -> bool:
    # PEFT saves sets as lists in arbitrary order.
    if isinstance(first, list) and isinstance(second, list):
        return sorted(map(str, first)) == sorted(map(str, second))
    return first == second
