"""HRA as plain LoRA.

Method: Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
Reflection Adaptation" (arXiv 2405.17484). Fields and tensors: `peft.tuners.hra`, PEFT 0.21.

The base's weight W is multiplied by R Householder reflections, `W H_1 … H_R`, where each
`H = 1 - 2 u u'` for a unit vector u. Each changes its left factor by a matrix of rank 1, so the
update has at most rank R.

Legend: R rank, I input features, O output features.
"""

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.weights.base_weight import weight
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors, Wide


def _hra(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    weight_OI = weight(layer.base, layer.module, "HRA")
    u_IR = shaped(layer, parts, ".hra_u", weight_OI.shape[1], layer.rank)
    # After Gram-Schmidt the vectors are orthogonal, so the reflections commute.
    u_IR = _orthonormal(u_IR) if layer.config.get("apply_GS") else _unit(u_IR)
    if not np.isfinite(u_IR).all():
        raise PackageError(
            f"module {layer.module}: a vector of hra_u is zero, or linearly dependent on others",
            "ADAPTER_NOT_FINITE",
        )
    b_OR: Wide = weight_OI.astype(np.float64) @ u_IR
    between_RR = u_IR.T @ u_IR
    for i in range(layer.rank):
        b_OR[:, i] = -2 * (b_OR[:, i] + b_OR[:, :i] @ between_RR[:i, i])
    return (b_OR, u_IR.T), 0.0


def _unit(u_IR: Wide) -> Wide:
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: Wide = u_IR / np.linalg.norm(u_IR, axis=0)
    return unit


def _orthonormal(u_IR: Wide) -> Wide:
    found = np.empty_like(u_IR)
    for i in range(u_IR.shape[1]):
        column = u_IR[:, i : i + 1]
        for j in range(i):
            column = column - found[:, j : j + 1] * (found[:, j] @ column)
        found[:, i : i + 1] = _unit(column)
    return found


HRA = Method(
    folded_fields({"r", "apply_GS"}, (), absent={"fan_in_fan_out"}),
    None,
    8,
    (".hra_u",),
    _hra,
    bias_only="hra_only",
)
