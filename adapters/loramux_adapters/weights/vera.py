"""VeRA and PVeRA as plain LoRA.

Methods: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation" (arXiv 2310.11454), and
PVeRA (arXiv 2512.07703). Fields and tensors: `peft.tuners.vera` and `peft.tuners.pvera`, PEFT 0.21.

A layer adds `b * (B (d * (A x)))`, where A and B are random, shared by all layers and cut to the
layer's widths, and the vectors d and b are the layer's own. So the LoRA is A and `b * B * d`. In
PVeRA, A and d have twice the rows, for the variance in training; inference uses the mean, as in
PEFT.

Legend: R rank, I input features, O output features.
"""

from functools import partial

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.weights.base_weight import features
from loramux_adapters.weights.fold import Layer, Method, Parts, part
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors


def _vera(prefix: str, method: str, rows: int, layer: Layer, parts: Parts) -> tuple[Factors, float]:
    inputs, _ = features(layer.base, layer.module, method)
    names = [f"base_model.{prefix}_{half}" for half in "AB"]
    if not set(names) <= parts.keys():
        raise PackageError(
            f"the file does not have the random matrices of {method}; save the adapter with "
            "save_projection=True",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    a_RI, b_OR = (parts[name] for name in names)
    d_R, b_O = (part(layer, parts, f".{prefix}_lambda_{name}") for name in ("d", "b"))
    rank = layer.rank
    fits = d_R.ndim == b_O.ndim == 1 and len(d_R) == len(a_RI) == rows * b_OR.shape[1]
    if not fits or len(d_R) != rows * rank or a_RI.shape[1] < inputs or len(b_OR) < len(b_O):
        raise PackageError(
            f"module {layer.module}: shapes {shown(a_RI.shape)}, {shown(b_OR.shape)}, "
            f"{shown(d_R.shape)} and {shown(b_O.shape)} of {prefix}_A, {prefix}_B, "
            f"{prefix}_lambda_d and {prefix}_lambda_b do not fit rank {rank} and {inputs} inputs"
        )
    cut_OR = b_OR[: len(b_O)].astype(np.float64)
    return (b_O[:, None] * cut_OR * d_R[:rank], a_RI[:rank, :inputs].astype(np.float64)), 0.0


def _method(prefix: str, name: str, rows: int, **refused: str) -> Method:
    return Method(
        folded_fields(
            {"r"},
            {"projection_prng_key", "save_projection", f"{prefix}_dropout", "d_initial"}
            | ({"generator_seed"} if refused else set()),
            absent={"exclude_modules"},
            refused=refused,
        ),
        None,
        256,
        (f".{prefix}_lambda_d", f".{prefix}_lambda_b"),
        partial(_vera, prefix, name, rows),
        shared=(f"base_model.{prefix}_",),
        bias_only=f"{prefix}_only",
        keeps_dtype=True,
    )


VERA = _method("vera", "VeRA", 1)
PVERA = _method(
    "pvera", "PVeRA", 2, sample_at_inference="its weights are drawn anew for each request"
)
