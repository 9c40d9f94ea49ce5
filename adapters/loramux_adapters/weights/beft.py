"""BEFT as plain LoRA with a bias.

Method: "BEFT: Bias-Efficient Fine-Tuning of Language Models" (arXiv 2509.15974). Fields and
tensors: `peft.tuners.beft`, PEFT 0.21.

A vector is added to the output of a layer. PEFT's LoRA can do the same with `lora_bias`; here its A
and B are zero, of rank 1.

Legend: R rank, I input features, O output features.
"""

import numpy as np

from loramux_adapters.weights.base_weight import features
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors

_BIAS = ".beft_bias"


def _beft(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    inputs, outputs = features(layer.base, layer.module, "BEFT")
    shaped(layer, parts, _BIAS, 1, outputs)
    return (np.zeros((outputs, 1)), np.zeros((1, inputs))), 0.0


BEFT = Method(
    folded_fields(
        (),
        (),
        absent={
            "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "fan_in_fan_out",
        },
    ),
    None,
    1,
    (_BIAS,),
    _beft,
    added_bias=_BIAS,
)  # fmt: skip
