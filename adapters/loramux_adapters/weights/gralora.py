"""GraLoRA as plain LoRA.

Method: Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning"
(arXiv 2505.20355). Fields and tensors: `peft.tuners.gralora`, PEFT 0.21.

The weight is split into K times K blocks, each with a LoRA of rank R / K: the blocks of one column
share a tensor of A, those of one row a tensor of B. Concatenated they are a LoRA of rank K R. With
`hybrid_r` there is another LoRA for the whole weight.

Legend: R rank, I input features, O output features, K blocks per side.
"""

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import alpha, integer
from loramux_adapters.peft_config import MAX_RANK
from loramux_adapters.weights.fold import (
    MAX_DENSE,
    Layer,
    Method,
    Parts,
    shaped,
    within_limit,
)
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors

_WHOLE_A, _WHOLE_B = ".gralora_A_general.weight", ".gralora_B_general.weight"


def _gralora(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    rank = layer.rank
    count = integer(layer.config, "gralora_k", 2, 1, MAX_RANK)
    hybrid = integer(layer.config, "hybrid_r", 0, 0, MAX_RANK)
    if rank % count:
        raise PackageError(
            f"adapter_config.json: r is {rank}, not a multiple of gralora_k, {count}",
            "INVALID_ADAPTER_CONFIG",
        )
    a = shaped(layer, parts, ".gralora_A", count, None, rank)  # [K, I / K, R]
    b = shaped(layer, parts, ".gralora_B", count, rank, None)  # [K, R, O / K]
    inputs, outputs, each = a.shape[1], b.shape[2], rank // count
    if count * count * rank * max(inputs, outputs) > MAX_DENSE:
        raise PackageError(
            f"module {layer.module}: {count} times {count} blocks of rank {each} are too large to "
            f"convert; a factor has at most {MAX_DENSE} values",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    a_RI = np.zeros((count, count, each, count, inputs))  # [column, row, rank, column, input]
    b_RO = np.zeros((count, count, each, count, outputs))  # [column, row, rank, row, output]
    for column in range(count):
        for row in range(count):
            a_RI[column, row, :, column] = a[column, :, row * each : (row + 1) * each].T
            b_RO[column, row, :, row] = b[row, column * each : (column + 1) * each]
    left, right = b_RO.reshape(count * rank, -1).T, a_RI.reshape(count * rank, -1)
    if hybrid:
        right = np.concatenate([right, shaped(layer, parts, _WHOLE_A, hybrid, right.shape[1])])
        left = np.concatenate([left, shaped(layer, parts, _WHOLE_B, len(left), hybrid)], 1)
    scale = alpha(layer.config.get("alpha", 64), "alpha") / (rank + hybrid)
    return within_limit(left * scale, right)


GRALORA = Method(
    folded_fields(
        {"r", "alpha", "gralora_k", "hybrid_r"}, {"gralora_dropout"}, absent={"exclude_modules"}
    ),
    None,
    32,
    (".gralora_A", ".gralora_B", _WHOLE_A, _WHOLE_B),
    _gralora,
    bias_only="gralora_only",
)
