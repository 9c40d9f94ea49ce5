"""RoAd: rotations of pairs of a layer's outputs.

Method: Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching
and Composability" (arXiv 2409.00119). Fields and tensors: `peft.tuners.road`, PEFT 0.21.

Outputs are split into groups of G. Output i of a group's first half forms a pair with output i of
the second half, which is rotated and scaled. The bias is rotated, too.

Legend: O output features, X inputs of a layer, or 1 for its bias.
"""

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import integer
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Wide

_MAX_GROUP = 1 << 20
_OF_GROUP = {"road_1": 1, "road_2": 2, "road_4": 4}
"""Variant -> angles per group, as a multiple of half its outputs."""
_COLUMNS = {1: ([0, 0], [0, 0]), 2: ([0, 1], [0, 1]), 4: ([0, 1], [2, 3])}


def _road(layer: Layer, parts: Parts, values_OX: Wide) -> Wide:
    group = integer(layer.config, "group_size", 64, 2, _MAX_GROUP)
    variant = layer.config.get("variant", "road_1")
    if not isinstance(variant, str) or variant not in _OF_GROUP:
        wanted = ", ".join(map(repr, _OF_GROUP))
        raise PackageError(
            f"adapter_config.json: variant is {shown(variant)}; expected one of {wanted}",
            "INVALID_ADAPTER_CONFIG",
        )
    outputs, halves = len(values_OX), _OF_GROUP[variant]
    if outputs % group or group % 2:
        raise PackageError(
            f"adapter_config.json: group_size is {group}, which does not divide the {outputs} "
            f"outputs of module {layer.module} into pairs",
            "INVALID_ADAPTER_CONFIG",
        )
    count = outputs // group * halves * (group // 2)
    theta, scale = (
        shaped(layer, parts, f".road_{name}", count).reshape(-1, halves, group // 2)
        for name in ("theta", "alpha")
    )
    # For both halves of the outputs: which angles are used for the cosine and for the sine.
    first, second = _COLUMNS[halves]
    along_O1 = (scale[:, first] * np.cos(theta[:, first])).reshape(-1, 1)
    across_O1 = (scale[:, second] * np.sin(theta[:, second])).reshape(-1, 1)
    pairs = values_OX.reshape(outputs // group, 2, group // 2, -1)
    turned = np.stack([-pairs[:, 1], pairs[:, 0]], 1).reshape(values_OX.shape)
    return values_OX * along_O1 + turned * across_O1


ROAD = Method(
    folded_fields(
        {"variant", "group_size"},
        (),
        absent={
            "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "fan_in_fan_out",
        },
    ),
    None,
    8,
    (".road_theta", ".road_alpha"),
    merge=_road,
    changes_bias=True,
)  # fmt: skip
