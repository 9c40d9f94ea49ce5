"""Statistics of each layer's update: rank, norm, and how much of the rank is used."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from loramux_adapters.package import Package
from loramux_adapters.weights.spectrum import effective_rank, factors, norm, singular_values
from loramux_adapters.weights.update import read_low_rank


@dataclass(frozen=True, slots=True)
class Measured:
    """Statistics of one update."""

    module: str
    rank: int
    scale: float
    in_features: int
    out_features: int
    dtype: str
    """Dtype of A and B, joined by `/` if they differ."""
    size_bytes: int
    norm: float | None
    """Frobenius norm of scale * B A; None if a weight is not finite."""
    largest: float | None
    """Largest singular value of scale * B A; None if a weight is not finite."""
    effective_rank: float | None
    """Effective number of directions; None if a weight is not finite."""


def measure(file: BinaryIO, package: Package) -> Iterator[Measured]:
    """Yield the statistics of each update of `package`, which is open as `file`."""
    for change, update in read_low_rank(file, package):
        s_K = singular_values(factors(update)) if update.is_finite() else np.array([np.nan])
        is_known = bool(np.isfinite(s_K).all())
        yield Measured(
            module=update.module,
            rank=update.rank,
            scale=update.scale,
            in_features=update.a_RI.shape[1],
            out_features=update.b_OR.shape[0],
            dtype="/".join(sorted({change.a.dtype, change.b.dtype})),
            size_bytes=(change.a.num_bytes + change.b.num_bytes) // change.num_experts,
            norm=norm(s_K) if is_known else None,
            largest=float(s_K[0]) if is_known else None,
            effective_rank=effective_rank(s_K) if is_known else None,
        )
