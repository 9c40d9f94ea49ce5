"""Weighted mixes of adapters: their identity, and how they are packed into one adapter.

Once packed, a mix is an adapter like any other, with rank rows and a prefix cache of its own. The
semantics are those of PEFT's `add_weighted_adapter`: the scale of each part is folded in, and the
result has scale 1.

Legend: R rank, K input width, N output width of a layer.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from loramux_adapters import PackageError
from loramux_adapters.weights.dtypes import Array
from loramux_server.lora.packed import (
    Base,
    LayerPlace,
    PackedAdapter,
    PackedLayer,
    Place,
    load_packed,
)
from loramux_server.lora.weights import Weights, rounded, widened
from loramux_server.lora.yield_cpu import yield_cpu
from loramux_server.wire.adapter_source import AdapterSource, Combination, Part
from loramux_server.wire.weight_format import AS_SAVED, StorageFormat, WeightFormat

NOT_MIXABLE: Final = "ADAPTER_NOT_MIXABLE"


@dataclass(frozen=True, slots=True)
class Found:
    """The low-rank change of one layer by one part, with its factor (scale times weight)."""

    a_RK: Weights
    b_RN: Weights
    form: WeightFormat
    factor: float


def mixed(
    sources: Sequence[AdapterSource], weights: Sequence[float], combination: Combination
) -> AdapterSource | None:
    """Return the weighted mix of low-rank adapters; None if all weights are 0.

    All must have the same invocation tokens. Several adapters become one of float32, whose rank is
    the sum of their ranks (cat) or the largest (linear).
    """
    pairs = [(source, weight) for source, weight in zip(sources, weights, strict=True) if weight]
    if not pairs:
        return None
    if len(pairs) == 1 and pairs[0][1] == 1:
        return pairs[0][0]
    pairs.sort(key=lambda pair: (pair[0].digest, pair[1]))
    parts = tuple(Part(s.digest, s.path, weight, s.seal) for s, weight in pairs)
    found = [source for source, _ in pairs]
    if len(pairs) == 1:
        return AdapterSource(
            _digest(parts, Combination.CAT), "", found[0].rank, found[0].num_bytes,
            found[0].item_bytes, invocation=found[0].invocation, parts=parts,
        )  # fmt: skip
    ranks = [source.rank for source in found]
    return AdapterSource(
        _digest(parts, combination),
        "",
        sum(ranks) if combination is Combination.CAT else max(ranks),
        sum(source.num_bytes * 4 // source.item_bytes for source in found),
        invocation=found[0].invocation,
        parts=parts,
        combination=combination,
    )


def load_source(
    source: AdapterSource, base: Base, storage_format: StorageFormat, place: Place | None = None
) -> PackedAdapter:
    """Read an adapter, or all parts of a mix, into memory and pack it; see `load_packed`.

    Raises:
        DamagedError: A file is absent or not what was registered.
        PackageError: It does not fit the base model, or its parts cannot be mixed.
    """
    if not source.parts:
        path = Path(source.path)
        return load_packed(path, source.digest, base, storage_format, place, seal=source.seal)
    if len(source.parts) == 1:
        part = source.parts[0]
        packed = load_packed(
            Path(part.path), part.digest, base, storage_format, place, seal=part.seal
        )
        _check_plain(packed, part)
        return replace(packed, scale_GP=packed.scale_GP * np.float32(part.weight))
    parts = []
    for part in source.parts:
        packed = load_packed(Path(part.path), part.digest, base, AS_SAVED, seal=part.seal)
        _check_plain(packed, part)
        parts.append((packed, part.weight))
    packed = _pack(source, parts, storage_format)
    return place(packed) if place else packed


def _digest(parts: Sequence[Part], combination: Combination) -> str:
    lines = [f"mix {combination}", *(f"{part.digest} {part.weight.hex()}" for part in parts)]
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def not_mixable(part: Part) -> PackageError:
    """Return the error for a part of a mix that does more than low-rank changes."""
    return PackageError(
        f"{part.digest} has more than low-rank updates, so it cannot be mixed or scaled",
        NOT_MIXABLE,
    )


def _check_plain(packed: PackedAdapter, part: Part) -> None:
    if packed.edits:
        raise not_mixable(part)


def _pack(
    source: AdapterSource,
    parts: Sequence[tuple[PackedAdapter, float]],
    storage_format: StorageFormat,
) -> PackedAdapter:
    """Return the mix of `parts`, which are pairs of adapter and weight."""
    found: dict[LayerPlace, list[Found]] = {}
    for packed, weight in parts:
        for layer in packed.layers:
            place = layer.place
            factor = float(packed.scale_GP[place.group, place.part]) * weight
            change = Found(layer.a_RK, layer.b_RN, packed.format, factor)
            found.setdefault(place, []).append(change)
    form = storage_format.of(WeightFormat.FLOAT32)
    rank_GP = np.zeros_like(parts[0][0].rank_GP)
    scale_GP = np.zeros_like(parts[0][0].scale_GP)
    layers = []
    for place, changes in found.items():
        a_RK, b_RN = combined(changes, source.combination)
        rank_GP[place.group, place.part], scale_GP[place.group, place.part] = len(a_RK), 1
        layers.append(PackedLayer(place, rounded(a_RK, form), rounded(b_RN, form)))
        yield_cpu()
    return PackedAdapter(
        source.rank, form, layers, rank_GP, scale_GP, storage_format.row_item_bytes
    )


def combined(changes: Sequence[Found], combination: Combination) -> tuple[Array, Array]:
    """Return A [R, K] and B transposed [R, N] of the combined `changes` of a layer.

    Raises:
        PackageError: Their ranks differ, and `combination` requires equal ones.
    """
    return (_join if combination is Combination.CAT else _add)(changes)


def _join(changes: Sequence[Found]) -> tuple[Array, Array]:
    """Return A and B of the sum of the changes: concatenated along the rank."""
    a = [widened(each.a_RK, each.form) * np.float32(each.factor) for each in changes]
    b = [widened(each.b_RN, each.form) for each in changes]
    return np.concatenate(a), np.concatenate(b)


def _add(changes: Sequence[Found]) -> tuple[Array, Array]:
    """Return the sums of A and of B, each scaled by sqrt(|factor|); A takes the factor's sign."""
    ranks = sorted({len(each.a_RK) for each in changes})
    if len(ranks) > 1:
        raise PackageError(
            f"combination linear needs equal ranks, and in one layer they are "
            f"{', '.join(map(str, ranks))}; cat supports any",
            NOT_MIXABLE,
        )
    a_RK, b_RN = (np.zeros(half.shape, np.float32) for half in (changes[0].a_RK, changes[0].b_RN))
    for each in changes:
        root = np.float32(math.sqrt(abs(each.factor)))
        a_RK += widened(each.a_RK, each.form) * np.copysign(root, np.float32(each.factor))
        b_RN += widened(each.b_RN, each.form) * root
    return a_RK, b_RN
