"""Tensor parallelism: how groups of layers and their adapters are sharded among processes.

Base layers as in Megatron-LM (arXiv 1909.08053): column-parallel layers (sharded by outputs), then
row-parallel layers (sharded by inputs), whose results are all-reduced. Adapters as in S-LoRA (arXiv
2311.03285): for column-parallel layers, A is replicated and B is sharded by outputs; for
row-parallel layers, A is sharded by inputs and B is replicated. B is linear in x·A, so each process
adds its partial update to its partial base result, and one all-reduce covers both: adapters add no
communication.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loramux_server.lora.packed import PackedAdapter, PackedLayer
from loramux_server.lora.slab import GroupShape


class Split(enum.Enum):
    """How a group of layers is sharded."""

    NOTHING = "nothing"
    """Replicated in every process."""
    OUTPUTS = "outputs"
    """Column-parallel: each layer of the group is split by outputs."""
    INPUTS = "inputs"
    """Row-parallel: the shared input is split."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal shards of a model."""

    index: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return its slice of `size` elements, which must be divisible by `count`."""
        assert size % self.count == 0
        share = size // self.count
        return slice(self.index * share, (self.index + 1) * share)


UNSHARDED = Shard()
"""The whole model in one process."""


def shard_shape(shape: GroupShape, split: Split, shard: Shard) -> GroupShape:
    """Return the shape of the part of a group that belongs to `shard`."""
    if split is Split.OUTPUTS:
        widths = tuple(width // shard.count for width in shape.out_features)
        return replace(shape, out_features=widths)
    if split is Split.INPUTS:
        return replace(shape, in_features=shape.in_features // shard.count)
    return shape


def shard_adapter(adapter: PackedAdapter, splits: Sequence[Split], shard: Shard) -> PackedAdapter:
    """Return the part of `adapter` that belongs to `shard`; `splits` has one entry per group."""
    layers = [_shard_layer(layer, splits[layer.place.group], shard) for layer in adapter.layers]
    return replace(adapter, layers=layers)


def _shard_layer(layer: PackedLayer, split: Split, shard: Shard) -> PackedLayer:
    if split is Split.OUTPUTS:
        return replace(layer, b_RN=layer.b_RN[:, shard.of(layer.b_RN.shape[1])])
    if split is Split.INPUTS:
        return replace(layer, a_RK=layer.a_RK[:, shard.of(layer.a_RK.shape[1])])
    return layer
