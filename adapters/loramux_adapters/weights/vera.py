"""VeRA as plain LoRA.

Source of the method: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation" (arXiv
2310.11454); of the meaning of each field and tensor: `peft.tuners.vera`, PEFT 0.21.

A layer adds `b * (B (d * (A x)))`, where A and B are random, shared by all layers and cut to the
layer's widths, and the vectors d and b are its own. So A and `b * B * d` are the LoRA.

Legend: R rank, I input features, O output features.
"""

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import Fields
from loramux_adapters.weights.fold import Layer, Method, Parts, part
from loramux_adapters.weights.spectrum import Factors

_A, _B = "base_model.vera_A", "base_model.vera_B"


def _vera(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    if layer.in_features is None:
        raise PackageError(
            f"module {layer.module}: of VeRA it is not saved how many inputs a layer has; give the "
            "base model with `loramux pack --base`; its checkpoint has to have a layer of that "
            "name",
            "ADAPTER_BASE_MISMATCH",
        )
    if not {_A, _B} <= parts.keys():
        raise PackageError(
            "the file does not hold the random matrices of VeRA; save the adapter with "
            "save_projection=True",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    a_RI, b_OR = parts[_A], parts[_B]
    d_R, b_O = (part(layer, parts, f".vera_lambda_{name}") for name in ("d", "b"))
    fits = d_R.ndim == b_O.ndim == 1 and len(d_R) == len(a_RI) == b_OR.shape[1] == layer.rank
    if not fits or a_RI.shape[1] < layer.in_features or len(b_OR) < len(b_O):
        raise PackageError(
            f"module {layer.module}: shapes {shown(a_RI.shape)}, {shown(b_OR.shape)}, "
            f"{shown(d_R.shape)} and {shown(b_O.shape)} of vera_A, vera_B, vera_lambda_d and "
            f"vera_lambda_b do not fit rank {layer.rank} and {layer.in_features} inputs"
        )
    cut_OR = b_OR[: len(b_O)].astype(np.float64)
    return (b_O[:, None] * cut_OR * d_R, a_RI[:, : layer.in_features].astype(np.float64)), 0.0


VERA = Method(
    Fields(
        honoured=frozenset({
            "peft_type", "r", "target_modules", "exclude_modules", "layers_to_transform",
            "layers_pattern", "modules_to_save", "bias",
        }),
        recorded=frozenset({
            "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
            "inference_mode", "projection_prng_key", "save_projection", "vera_dropout", "d_initial",
            "fan_in_fan_out", "init_weights",
        }),
        refused={},
    ),
    None,
    256,
    (".vera_lambda_d", ".vera_lambda_b"),
    _vera,
    (_A, _B),
    bias_only="vera_only",
)  # fmt: skip
