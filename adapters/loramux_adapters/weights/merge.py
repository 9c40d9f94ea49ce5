"""Merging adapters into one, with the methods of PEFT's `add_weighted_adapter`.

Each update enters with its own scale, and the result has scale 1 unless ranks differ. (PEFT 0.21
leaves `use_rslora` on in the result and so multiplies it by the square root of its rank.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast, get_args

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.manifest import with_step
from loramux_adapters.package import Package, digest_of
from loramux_adapters.peft_config import MAX_RANK
from loramux_adapters.plain import require_low_rank
from loramux_adapters.weights.combine import METHODS, Draw, Method, Sign, combined, seeded
from loramux_adapters.weights.diff import check_shapes
from loramux_adapters.weights.dtypes import dtype_named
from loramux_adapters.weights.spectrum import Spectrum, spectrum, weighted_sum
from loramux_adapters.weights.update import Update, dtype_of, read_update, write_updates

MERGE_METHODS = ("cat", "svd", *METHODS, *(f"{m}_svd" for m in METHODS if m != "linear"))
"""Merge methods. `cat` and `svd` add the updates; the others combine the factors or, with `_svd`,
the full update of each layer, which takes memory for one layer at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How adapters are merged; options that the method does not use are refused."""

    method: str = "cat"
    weights: tuple[float, ...] = ()
    """One per adapter; all 1 if empty."""
    rank: int | None = None
    """Rank of the result, for svd methods; None for the largest rank of the adapters."""
    density: float | None = None
    """Share of the entries to keep, for methods that drop entries."""
    sign: Sign = "total"
    """How `ties` finds the majority sign: by sum of values or by count of signs."""
    seed: int = 0
    """Random seed for what `dare` drops."""
    dtype: str | None = None
    """A name such as `bfloat16`; None for the adapters' dtype, or float32 if they differ."""

    def __post_init__(self) -> None:
        if self.method not in MERGE_METHODS:
            known = ", ".join(MERGE_METHODS)
            self._refuse(f"method is {shown(self.method)}; expected one of {known}")
        if self.sign not in get_args(Sign):
            self._refuse(f"sign is {shown(self.sign)}; expected {' or '.join(get_args(Sign))}")
        if not all(math.isfinite(weight) for weight in self.weights):
            self._refuse(f"weights are {shown(self.weights)}; each must be finite")
        if self.rank is not None and not (self.is_svd and self.rank >= 1):
            self._refuse(f"rank is {self.rank}; it needs an svd method, and must be 1 or more")
        if not self.drops and self.density is not None:
            self._refuse(f"method {self.method} keeps all entries: omit density")
        if self.drops and not 0 < (self.density or 0) <= 1:
            self._refuse(
                f"density is {self.density}; for {self.method} it must be above 0, up to 1"
            )

    @property
    def is_svd(self) -> bool:
        """Whether the result is the best approximation of some rank."""
        return self.method.endswith("svd")

    @property
    def drops(self) -> bool:
        """Whether the method keeps only a share of the entries."""
        return self.method not in ("cat", "svd", "linear")

    def _refuse(self, fault: str) -> None:
        raise PackageError(fault, "INVALID_FIELD")


def merge(
    sources: Sequence[tuple[BinaryIO, Package]],
    output: BinaryIO,
    options: MergeOptions,
    *,
    draw: Draw | None = None,
) -> None:
    """Write the merged adapter of the packages `sources`, each with its open file, to `output`.

    `draw` replaces the seeded masks of `dare`; it is called for A and then B of the modules, sorted
    by name.

    Raises:
        PackageError: The adapters are for different base models or cannot be merged in this way.
    """
    weights = options.weights or (1.0,) * len(sources)
    if len(weights) != len(sources) or not sources:
        raise PackageError(
            f"{len(weights)} weights are given for {len(sources)} adapters", "INVALID_FIELD"
        )
    packages = [package for _, package in sources]
    configs = [require_low_rank(package, "merge") for package in packages]
    _check_bases(packages)
    if len({config.invocation for config in configs}) > 1:
        raise PackageError(
            "the adapters have different alora_invocation_tokens; a merged adapter needs the same",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    draw = draw or seeded(options.seed)
    rank = options.rank or max(package.rank for package in packages)
    tables = [{module.module: module for module in package.modules} for package in packages]
    merged = []
    for name in sorted(set().union(*tables)):
        found = [
            (read_update(file, package, table[name]), weight)
            for (file, package), table, weight in zip(sources, tables, weights, strict=True)
            if name in table
        ]
        updates, their_weights = [update for update, _ in found], [weight for _, weight in found]
        check_shapes(name, updates)
        merged.append(_merged(updates, their_weights, options, rank, draw))
    dtypes = {dtype_of(package) for package in packages}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    step: dict[str, object] = {
        "made_by": "loramux merge",
        "of": [digest_of(file) for file, _ in sources],
        "method": options.method,
        "weights": list(weights),
    }
    step |= {"density": options.density} if options.drops else {}
    step |= {"seed": options.seed} if options.method.startswith("dare") else {}
    write_updates(
        _config(packages, configs, [update.module for update in merged]),
        merged,
        dtype_named(options.dtype) if options.dtype else dtype,
        output,
        notes=with_step({}, step),
    )


def _merged(
    updates: list[Update], weights: list[float], options: MergeOptions, rank: int, draw: Draw
) -> Update:
    name = updates[0].module
    for update in updates:
        if not update.is_finite():
            raise PackageError(f"module {name}: a weight is NaN or infinite", "ADAPTER_NOT_FINITE")
    if options.method in ("cat", "svd"):
        both = weighted_sum(updates, weights)
        if options.method == "cat" and len(both[1]) > MAX_RANK:
            raise PackageError(
                f"module {name}: the ranks add up to {len(both[1])}, above {MAX_RANK}; "
                "use svd for a lower one",
                "INVALID_FIELD",
            )
        if options.method == "svd" and rank < len(both[1]):
            return spectrum(both).best(name, rank)
        return Update(name, 1.0, both[1].astype(np.float32), both[0].astype(np.float32))
    method = cast(Method, options.method.removesuffix("_svd"))
    density = options.density or 1.0
    if options.is_svd:
        deltas = [(u.b_OR @ u.a_RI) * np.float32(u.scale) for u in updates]
        delta = combined(method, deltas, weights, density=density, sign=options.sign, draw=draw)
        u, s_K, v = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
        return Spectrum(u, s_K, v).best(name, rank)
    ranks = {update.rank for update in updates}
    if len(ranks) > 1:
        raise PackageError(
            f"module {name} has ranks {', '.join(map(str, sorted(ranks)))}: {options.method} "
            "needs equal ranks; cat and the svd methods do not",
            "INVALID_FIELD",
        )
    # A and B each get the square root of the weight; the sign goes to A.
    scaled = [update.scale * weight for update, weight in zip(updates, weights, strict=True)]
    roots = [math.sqrt(abs(scale)) for scale in scaled]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scaled, strict=True)]
    a_RI, b_OR = (
        combined(method, arrays, halves, density=density, sign=options.sign, draw=draw)
        for arrays, halves in (
            ([update.a_RI for update in updates], signed),
            ([update.b_OR for update in updates], roots),
        )
    )
    return Update(name, 1.0, a_RI, b_OR)


def _check_bases(packages: list[Package]) -> None:
    bases = sorted({package.config.base_model for package in packages} - {""})
    if len(bases) > 1:
        raise PackageError(
            f"the adapters name different base models: {', '.join(map(shown, bases))}; if they are "
            "one model, make base_model_name_or_path the same",
            "ADAPTER_BASE_MISMATCH",
        )


def _config(
    packages: list[Package], configs: list[LoraConfig], modules: list[str]
) -> Mapping[str, object]:
    """Return the config of the first adapter, with targets that cover all of `modules`."""
    first = configs[0]
    config = dict(packages[0].peft_config)
    if all(_targets(other) == _targets(first) for other in configs[1:]):
        return config
    keys = {other.key_of(module) for other in configs for module in modules} - {*modules}
    return config | {
        "target_modules": [module for module in modules if f"{module}.weight" not in keys],
        "target_parameters": sorted(keys) or None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _targets(config: LoraConfig) -> tuple[object, ...]:
    return (
        config.target_modules, config.exclude_modules, config.layers, config.layers_pattern,
        config.parameters,
    )  # fmt: skip
