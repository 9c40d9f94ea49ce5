"""TinyLoRA as plain LoRA.

Method: Morris et al., "Learning to Reason in 13 Parameters" (arXiv 2602.04118). Fields and tensors:
`peft.tuners.tinylora`, PEFT 0.21.

A layer adds B R A, where A and B are singular vectors of the base's weight, and R is the sum of
random matrices P, weighted by a vector v. PEFT saves A, B, P and the vectors, but not which layer
uses which vector; so they are supported only if all layers share one.

Legend: R rank, I input features, O output features, U numbers of the vector.
"""

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors

_VECTORS = "base_model.tinylora_v."


def _tinylora(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    count = sum(name.startswith(_VECTORS) for name in parts)
    if count > 1:
        raise PackageError(
            f"adapter_config.json: 'weight_tying' = {layer.config.get('weight_tying', 0.0)!r} is "
            f"not supported: the adapter has {count} vectors, and PEFT does not save which layer "
            "uses which; train it with weight_tying=1.0, one vector for all layers",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    v_U = shaped(layer, parts, f"{_VECTORS}0", None)
    if ".tinylora_P" not in parts:
        raise PackageError(
            "the file does not have the random matrices of TinyLoRA; save the adapter with "
            "save_projection=True",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    p_URR = shaped(layer, parts, ".tinylora_P", len(v_U), None, None)
    a_RI = shaped(layer, parts, ".tinylora_A", p_URR.shape[2], None)
    b_OR = shaped(layer, parts, ".tinylora_B", None, p_URR.shape[1])
    return (b_OR @ np.einsum("u,ujk->jk", v_U, p_URR), a_RI), 0.0


TINYLORA = Method(
    folded_fields(
        {"r", "weight_tying"},
        {"u", "projection_seed", "save_projection", "init_v_bound", "tinylora_dropout"},
        absent={"exclude_modules"},
    ),
    None,
    2,
    (".tinylora_A", ".tinylora_B", ".tinylora_P"),
    _tinylora,
    shared=(_VECTORS,),
    bias_only="tinylora_only",
)
