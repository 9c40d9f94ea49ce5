"""How layers that share an input, and the adapters behind them, are divided among processes.

Base layers as Megatron-LM does it (arXiv 1909.08053): first layers divided by outputs, then layers
divided by inputs, whose results all processes add up. Adapters as S-LoRA does it (arXiv
2311.03285): where outputs are divided A is whole and B is divided by outputs; where inputs are, A
is divided by inputs and B is whole. A low-rank change is linear in what A makes of the input, so
each process adds its part of it to its part of the base's result, and one sum does for both:
adapters bring no communication of their own.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loramux_server.lora.packed import PackedAdapter, PackedLayer
from loramux_server.lora.slab import GroupShape


class Split(enum.Enum):
    """By what a group of layers is divided."""

    NOTHING = "nothing"
    """Every process has all of it."""
    OUTPUTS = "outputs"
    """Each layer for itself, so that a process has a share of every one."""
    INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class Shard:
    """One of the equal parts in which a model is held."""

    index: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return its share of `size` things, which can be divided."""
        assert size % self.count == 0
        share = size // self.count
        return slice(self.index * share, (self.index + 1) * share)


WHOLE = Shard()
"""All of a model, in one process."""


def cut_shape(shape: GroupShape, split: Split, shard: Shard) -> GroupShape:
    """Return the shape of the part of a group that `shard` has."""
    if split is Split.OUTPUTS:
        widths = tuple(width // shard.count for width in shape.out_features)
        return replace(shape, out_features=widths)
    if split is Split.INPUTS:
        return replace(shape, in_features=shape.in_features // shard.count)
    return shape


def cut_adapter(adapter: PackedAdapter, splits: Sequence[Split], shard: Shard) -> PackedAdapter:
    """Return the part of a whole `adapter` that `shard` has; `splits` has one for each group."""
    layers = [_cut(layer, splits[layer.place.group], shard) for layer in adapter.layers]
    return replace(adapter, layers=layers)


def _cut(layer: PackedLayer, split: Split, shard: Shard) -> PackedLayer:
    if split is Split.OUTPUTS:
        return replace(layer, b_RN=layer.b_RN[:, shard.of(layer.b_RN.shape[1])])
    if split is Split.INPUTS:
        return replace(layer, a_RK=layer.a_RK[:, shard.of(layer.a_RK.shape[1])])
    return layer
