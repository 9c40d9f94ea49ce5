"""LoHa and LoKr as plain LoRA.

Methods: FedPara (arXiv 2108.06098) and LyCORIS (arXiv 2309.14859). Fields and tensors:
`peft.tuners.loha` and `peft.tuners.lokr`, PEFT 0.21.

LoHa adds the elementwise product `(w1_a w1_b) * (w2_a w2_b)`: the product of two sums of r matrices
of rank 1 is a sum of r² of them. LoKr adds the Kronecker product of w1 and w2, each a matrix or two
factors; the Kronecker product of matrices of ranks p and q has rank pq.

Legend: R rank, I input features, O output features.
"""

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import Fields
from loramux_adapters.peft_config import MAX_RANK
from loramux_adapters.weights.dtypes import Array
from loramux_adapters.weights.fold import MAX_DENSE, Layer, Method, Parts, nearest, part
from loramux_adapters.weights.spectrum import Factors, Wide

_HONOURED = frozenset({
    "peft_type", "r", "alpha", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save",
})  # fmt: skip
_RECORDED = frozenset({
    "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
    "inference_mode", "rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights",
})  # fmt: skip
# The tensors' shapes tell how they were decomposed.
_OF_LOKR = frozenset({"decompose_both", "decompose_factor", "rank_dropout_scale"})


def _loha(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    one, two = (
        _pair(layer, part(layer, parts, f".hada_{w}_a"), part(layer, parts, f".hada_{w}_b"))
        for w in ("w1", "w2")
    )
    (left_1, right_1), (left_2, right_2) = one, two
    if left_1.shape != left_2.shape or right_1.shape != right_2.shape or len(right_1) != layer.rank:
        raise PackageError(
            f"module {layer.module}: shapes {shown(left_1.shape)}, {shown(right_1.shape)}, "
            f"{shown(left_2.shape)} and {shown(right_2.shape)} of its four matrices do not have "
            f"rank {layer.rank} and matching widths"
        )
    if layer.rank**2 <= MAX_RANK:
        b_OR: Wide = (left_1[:, :, None] * left_2[:, None, :]).reshape(len(left_1), -1)
        a_RI = (right_1[:, None, :] * right_2[None, :, :]).reshape(-1, right_1.shape[1])
        return (b_OR, a_RI), 0.0
    if len(left_1) * right_1.shape[1] > MAX_DENSE:
        raise PackageError(
            f"module {layer.module}: rank {layer.rank} can be converted only for layers of up to "
            f"{MAX_DENSE} weights",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    change_OI = (left_1 @ right_1) * (left_2 @ right_2)
    if min(change_OI.shape) <= MAX_RANK:
        return _beside_identity(change_OI), 0.0
    return nearest(*np.linalg.svd(change_OI, full_matrices=False))


def _lokr(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    (left_1, right_1), (left_2, right_2) = (_of_kron(layer, parts, name) for name in ("w1", "w2"))
    if len(right_1) * len(right_2) <= MAX_RANK:
        left = np.kron(left_1, left_2).astype(np.float64)
        right = np.kron(right_1, right_2).astype(np.float64)
        return (left, right), 0.0
    # The singular values of a Kronecker product are the products of those of its two sides.
    (u_1, s_1, v_1), (u_2, s_2, v_2) = (
        np.linalg.svd(left @ right, full_matrices=False)
        for left, right in ((left_1, right_1), (left_2, right_2))
    )
    s_K: Wide = np.outer(s_1, s_2).reshape(-1)
    order = np.argsort(-s_K, kind="stable")
    i, j = np.divmod(order[: MAX_RANK + 1], len(s_2))
    u_OK = (u_1[:, None, i] * u_2[None, :, j]).reshape(-1, len(i))
    v_KI = (v_1[i, :, None] * v_2[j, None, :]).reshape(len(i), -1)
    return nearest(u_OK, s_K[order], v_KI)


def _of_kron(layer: Layer, parts: Parts, name: str) -> Factors:
    """Return the factors of one side of a Kronecker product."""
    if f".lokr_{name}" in parts:
        return _beside_identity(_matrix(layer, parts[f".lokr_{name}"]))
    left = part(layer, parts, f".lokr_{name}_a")
    return _pair(layer, left, part(layer, parts, f".lokr_{name}_b"))


def _pair(layer: Layer, left: Array, right: Array) -> Factors:
    left, right = _matrix(layer, left), _matrix(layer, right)
    if left.shape[1] != len(right):
        raise PackageError(
            f"module {layer.module}: matrices of shapes {shown(left.shape)} and "
            f"{shown(right.shape)} cannot be multiplied"
        )
    return left.astype(np.float64), right.astype(np.float64)


def _matrix(layer: Layer, values: Array) -> Array:
    if values.ndim != 2:
        shape = shown(values.shape)
        raise PackageError(f"module {layer.module}: a tensor of shape {shape} is not 2-D")
    return values


def _beside_identity(change_OI: Array | Wide) -> Factors:
    """Return `change_OI` and an identity as factors, the identity on the side with lower rank."""
    wide = change_OI.astype(np.float64)
    outputs, inputs = wide.shape
    return (wide, np.eye(inputs)) if inputs <= outputs else (np.eye(outputs), wide)


LOHA = Method(
    Fields(_HONOURED, _RECORDED, {}),
    "alpha",
    8,
    (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    _loha,
    keeps_dtype=True,
)
LOKR = Method(
    Fields(_HONOURED, _RECORDED | _OF_LOKR, {}),
    "alpha",
    8,
    (".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b"),
    _lokr,
    keeps_dtype=True,
)
