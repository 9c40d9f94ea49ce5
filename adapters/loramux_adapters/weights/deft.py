"""DEFT and PaRa as plain LoRA.

Methods, fields and tensors: `peft.tuners.deft`, PEFT 0.21.

A low-rank part of the base's weight W is removed and replaced by another: a layer adds
`P (R - Q' W)`, where Q is P with negative entries set to zero, or P and Q are both P's orthonormal
basis. With `para`, R is zero. So B is P, and A is the other factor.

Legend: R rank, I input features, O output features.
"""

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import alpha
from loramux_adapters.weights.base_weight import weight
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors, Wide


def _deft(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    weight_OI = weight(layer.base, layer.module, "DEFT").astype(np.float64)
    outputs, inputs = weight_OI.shape
    rank = min(layer.rank, outputs)
    left_OR, right_OR = _projection(layer, shaped(layer, parts, ".deft_P", outputs, rank))
    a_RI = -right_OR.T @ weight_OI
    if not layer.config.get("para"):
        given = layer.config.get("alpha")
        scale = alpha(given, "alpha") / rank if given else 1.0
        a_RI += scale * shaped(layer, parts, ".deft_R", rank, inputs)
    return (left_OR, a_RI), 0.0


def _projection(layer: Layer, p_OR: Wide) -> Factors:
    """Return P and Q."""
    method = layer.config.get("decomposition_method", "relu")
    if method == "relu":
        return p_OR, np.maximum(p_OR, 0)
    if method == "qr":
        # R was trained with the signs that QR in float32 gives the basis.
        basis_OR: Wide = np.linalg.qr(p_OR.astype(np.float32))[0].astype(np.float64)
        return basis_OR, basis_OR
    raise PackageError(
        f"adapter_config.json: decomposition_method is {shown(method)}; expected 'relu' or 'qr'",
        "INVALID_ADAPTER_CONFIG",
    )


DEFT = Method(
    folded_fields({"r", "alpha", "para", "decomposition_method"}, {"deft_dropout", "init_scale"}),
    None,
    8,
    (".deft_P", ".deft_R"),
    _deft,
    bias_only="deft_only",
)
