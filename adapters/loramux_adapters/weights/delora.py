"""DeLoRA as plain LoRA.

Method: Bini et al., "Decoupling Angles and Strength in Low-rank Adaptation" (arXiv 2503.18225).
Fields and tensors: `peft.tuners.delora`, PEFT 0.21.

Rows of A and columns of B are normalized and scaled by lambda / rank; inputs are scaled by the
norms of the base weight's columns. PEFT saves these norms as they were at the start.

Legend: R rank, I input features, O output features.
"""

import numpy as np

from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors

_LEAST = 1e-4
"""PEFT's lower bound for the norm of a vector."""


def _delora(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    a_RI = shaped(layer, parts, ".delora_A", layer.rank, None)
    b_OR = shaped(layer, parts, ".delora_B", None, layer.rank)
    norms_I = shaped(layer, parts, ".delora_w_norm", a_RI.shape[1])
    (strength,) = shaped(layer, parts, ".delora_lambda", 1)
    lengths_R = np.maximum(np.linalg.norm(a_RI, axis=1), _LEAST)
    lengths_R *= np.maximum(np.linalg.norm(b_OR, axis=0), _LEAST)
    return (b_OR * (strength / layer.rank / lengths_R), a_RI * norms_I), 0.0


DELORA = Method(
    folded_fields(
        {"r", "rank_pattern"},
        # The trained strengths are saved as tensors.
        {"delora_lambda", "lambda_pattern", "module_dropout"},
        absent={"fan_in_fan_out"},
    ),
    None,
    8,
    (".delora_A", ".delora_B", ".delora_lambda", ".delora_w_norm"),
    _delora,
    bias_only="delora_only",
)
