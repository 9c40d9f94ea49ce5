"""What may become of a server in use, and what did."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.samples import Sample

MAX_SLOPE = 2.0
"""MiB of memory that a process may gain with a thousand things done, at the upper end of the 95 %
interval. Some thousand things do not fill every cache that has a bound, such as that of uploads
whose result is told again, and leave the allocator of C with holes."""
MEMORY = ("frontend", "engine", "helpers")
SPARE = {
    "descriptors": 6, "threads": 4, "processes": 0, "tasks": 0, "leases": 0, "requests": 0,
    "blocks": 0, "states": 0, "adapters": 0, "resident": 0, "series": 0, "files": 0,
}  # fmt: skip
"""Count -> by how much it may be above where it was when the server had nothing to do. Pools of
threads, and of connections to the catalog with two descriptors each, grow to their size when they
happen to be busy enough."""


@dataclass(frozen=True)
class Slope:
    """How fast something grows, in its unit for a thousand things done."""

    value: float
    upper: float
    """The upper end of the 95 % interval, as if samples did not depend on each other."""


def slope(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """Return the least-squares slope of `ys` over thousands of `xs`; 3 points at least."""
    thousands = [x / 1000 for x in xs]
    fit = statistics.linear_regression(thousands, ys)
    residuals = [y - fit.slope * x - fit.intercept for x, y in zip(thousands, ys, strict=True)]
    spread = sum((x - statistics.fmean(thousands)) ** 2 for x in thousands)
    error = math.sqrt(sum(r * r for r in residuals) / (len(xs) - 2) / spread)
    return Slope(fit.slope, fit.slope + 1.96 * error)


def slopes(samples: Sequence[Sample]) -> dict[str, Slope]:
    """Return how the memory of each kind of process grows."""
    done = [float(sample.done) for sample in samples]
    return {name: slope(done, [getattr(sample, name) for sample in samples]) for name in MEMORY}


def grown(samples: Sequence[Sample], limit: float = MAX_SLOPE) -> list[str]:
    """Return what is wrong with the memory of a server at work; empty if nothing is."""
    return [
        f"memory of {name}: up to {found.upper:.2f} MiB more for 1,000 things done, at most {limit}"
        for name, found in slopes(samples).items()
        if found.upper > limit
    ]


def left(before: Sample, after: Sample) -> list[str]:
    """Return what a server that has nothing to do still holds and did not before."""
    return [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name, spare in SPARE.items()
        if getattr(after, name) > getattr(before, name) + spare
    ]
