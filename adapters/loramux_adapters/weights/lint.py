"""Checks for adapters that are valid but most likely a mistake; findings have stable codes."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import BinaryIO, Literal

import numpy as np

from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.package import Package
from loramux_adapters.tensorfile import tensor_reader
from loramux_adapters.weights.dtypes import NAMES, decoded, is_exact
from loramux_adapters.weights.measure import Measured, measure
from loramux_adapters.weights.update import read_updates

MAX_USUAL_SCALE = 16.0
MIN_USUAL_SCALE = 1 / 16
HIGH_RANK = 64
"""From this rank on, alpha/r is much smaller than rsLoRA's alpha/sqrt(r)."""
OUTLIER = 20.0
"""A norm this many times the median of the same kind of layers is an outlier."""
MIN_SHARE_OF_RANK = 0.25

Level = Literal["error", "warning", "note"]

CODES: dict[str, Level] = {
    "not-finite": "error",
    "dead-adapter": "error",
    "dead-module": "warning",
    "scale-high": "warning",
    "scale-low": "warning",
    "rank-without-rslora": "warning",
    "norm-outlier": "warning",
    "base-unknown": "warning",
    "mixed-dtypes": "note",
    "rank-unused": "note",
    "wide-dtype": "note",
}
"""Code -> severity, sorted by severity."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the owner of the adapter should check."""

    code: str
    message: str
    module: str | None = None
    """The layer; None for the whole adapter."""

    @property
    def level(self) -> Level:
        """Severity: an `error` cannot work, a `warning` rarely does, a `note` is about waste."""
        return CODES[self.code]


def lint(file: BinaryIO, package: Package) -> list[Finding]:
    """Return the findings for `package`, which is open as `file`, most severe first."""
    measured = list(measure(file, package))
    findings = [
        *_of_config(package),
        *_of_updates(file, package),
        *_of_virtual(file, package),
        *_of_measures(measured),
        *_of_dtypes(file, package),
    ]
    order = list(CODES)
    return sorted(findings, key=lambda finding: (order.index(finding.code), finding.module or ""))


def _of_config(package: Package) -> Iterator[Finding]:
    config = package.config
    if not config.base_model:
        yield Finding("base-unknown", "base_model_name_or_path is empty: name the base model")
    provenance = package.notes.get("provenance")
    if isinstance(provenance, dict) and "steps" in provenance:
        return  # the scales come from convert or merge, not from training
    use_rslora = isinstance(config, LoraConfig) and config.use_rslora
    scales = defaultdict(list)
    changes = package.contents.low_rank
    for change in changes:
        scales[change.scale, change.rank].append(change.name)
    for (scale, rank), modules in scales.items():
        where = f"in {len(modules)} of {len(changes)} modules, such as {modules[0]}"
        if scale > MAX_USUAL_SCALE:
            usual = f"above {MAX_USUAL_SCALE:g} training is rarely stable"
            yield Finding("scale-high", f"the scale is {scale:g} {where}: {usual}")
        elif rank >= HIGH_RANK and not use_rslora and scale < 1 / math.sqrt(rank):
            yield Finding(
                "rank-without-rslora",
                f"rank {rank} has scale {scale:g} {where}: alpha/r is small at such ranks; "
                "was the adapter trained with use_rslora?",
            )
        elif scale < MIN_USUAL_SCALE:
            usual = f"below {MIN_USUAL_SCALE:g} an adapter has little effect"
            yield Finding("scale-low", f"the scale is {scale:g} {where}: {usual}")


def _of_updates(file: BinaryIO, package: Package) -> Iterator[Finding]:
    dead, num_updates = [], 0
    for update in read_updates(file, package):
        num_updates += 1
        if not update.is_finite():
            yield Finding("not-finite", "a weight is NaN or infinite", update.module)
        elif not update.b_OR.any() or not update.a_RI.any():
            half = "A" if update.b_OR.any() else "B"
            dead.append(Finding("dead-module", f"{half} is all zeros", update.module))
    if dead and len(dead) == num_updates and not package.edits:
        yield Finding("dead-adapter", "every module is zero: the adapter changes nothing")
    else:
        yield from dead


def _of_virtual(file: BinaryIO, package: Package) -> Iterator[Finding]:
    read = tensor_reader(file, package.file.data_start)
    for tensor in package.virtual.tensors if package.virtual else ():
        values = decoded(b"".join(read(tensor)), tensor.dtype)
        if not np.isfinite(values).all():
            yield Finding("not-finite", f"tensor {tensor.name}: a value is NaN or infinite")


def _of_measures(measured: list[Measured]) -> Iterator[Finding]:
    by_target = defaultdict(list)
    for entry in measured:
        if entry.norm:
            by_target[entry.module.rpartition(".")[2]].append(entry.norm)
    for entry in measured:
        if not entry.norm or entry.effective_rank is None:
            continue
        target = entry.module.rpartition(".")[2]
        usual = median(by_target[target])
        if entry.norm > OUTLIER * usual:
            message = f"the norm is {entry.norm:.3g}; the median of {target} is {usual:.3g}"
            yield Finding("norm-outlier", message, entry.module)
        if entry.rank > 1 and entry.effective_rank < MIN_SHARE_OF_RANK * entry.rank:
            yield Finding(
                "rank-unused",
                f"{entry.effective_rank:.1f} of rank {entry.rank} are in use; see convert --energy",
                entry.module,
            )


def _of_dtypes(file: BinaryIO, package: Package) -> Iterator[Finding]:
    dtypes = {tensor.dtype for tensor in package.file.tensors.values()}
    if len(dtypes) > 1:
        yield Finding(
            "mixed-dtypes", f"the tensors have several dtypes: {', '.join(sorted(dtypes))}"
        )
    if "F32" not in dtypes or not package.contents.low_rank:
        return
    fitting = {"BF16", "F16"}
    for update in read_updates(file, package):
        for values in (update.a_RI, update.b_OR):
            if np.isfinite(values).all():
                fitting = {dtype for dtype in fitting if is_exact(values, dtype)}
        if not fitting:
            return
    dtype = "BF16" if "BF16" in fitting else "F16"
    name = next(name for name, short in NAMES.items() if short == dtype)
    yield Finding("wide-dtype", f"all values fit into {name}; see convert --dtype {name}")
