"""OFT and BOFT: block-diagonal rotations of the inputs of a layer.

Methods: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (arXiv
2306.07280), and Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization"
(arXiv 2311.06243). Fields and tensors: `peft.tuners.oft` and `peft.tuners.boft`, PEFT 0.21.

Each block is the Cayley transform of a skew-symmetric matrix Q, `(1 + Q)^-1 (1 - Q)`, or the first
terms of its series. BOFT also scales the outputs by a vector.

Legend: I input features, O output features, D blocks, H inputs of a block.
"""

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import integer
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Wide

_MAX_TERMS = 1024
_NO_BIAS = {"bias": "biases are not supported with it"}


def _oft(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    values = shaped(layer, parts, ".oft_R.weight", None, None)
    # The skew-symmetric matrix of H inputs has H (H - 1) / 2 free numbers.
    size = round((1 + (1 + 8 * values.shape[1]) ** 0.5) / 2)
    count, is_shared = weight_OI.shape[1] // size, bool(layer.config.get("block_share"))
    if count * size != weight_OI.shape[1] or len(values) != (1 if is_shared else count):
        raise PackageError(
            f"module {layer.module}: {len(values)} blocks of {size} inputs do not match "
            f"{weight_OI.shape[1]} inputs"
        )
    skew_DHH = np.zeros((len(values), size, size))
    skew_DHH[:, *np.triu_indices(size, 1)] = values
    skew_DHH -= skew_DHH.transpose(0, 2, 1)
    terms = integer(layer.config, "num_cayley_neumann_terms", 5, 1, _MAX_TERMS)
    turns_DHH = _series(skew_DHH, terms) if layer.config.get("use_cayley_neumann") else (
        _cayley(skew_DHH)
    )  # fmt: skip
    return _rotated(weight_OI, np.broadcast_to(turns_DHH, (count, size, size)).transpose(0, 2, 1))


def _boft(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    outputs, inputs = weight_OI.shape
    blocks = shaped(layer, parts, ".boft_R", None, None, None, None)
    factors, count, size, _ = blocks.shape
    if factors != 1:
        raise PackageError(
            f"adapter_config.json: 'boft_n_butterfly_factor' = {factors} is not supported: only "
            "one factor is, which PEFT uses without its CUDA extension",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if count * size != inputs:
        raise PackageError(
            f"module {layer.module}: {count} blocks of {size} inputs do not match {inputs} inputs"
        )
    scale_O1 = shaped(layer, parts, ".boft_s", outputs, 1)
    skew_DHH = 0.5 * (blocks[0] - blocks[0].transpose(0, 2, 1))
    return scale_O1 * _rotated(weight_OI, _cayley(skew_DHH).transpose(0, 2, 1))


def _rotated(weight_OI: Wide, turns_DHH: Wide) -> Wide:
    """Return the weight for inputs that the blocks rotate first."""
    count, size, _ = turns_DHH.shape
    in_blocks = weight_OI.reshape(-1, count, size)
    turned: Wide = np.einsum("odh,dhk->odk", in_blocks, turns_DHH).reshape(weight_OI.shape)
    return turned


def _cayley(skew_DHH: Wide) -> Wide:
    one = np.eye(skew_DHH.shape[-1])
    # The two factors commute.
    return np.linalg.solve(one + skew_DHH, one - skew_DHH).astype(np.float64)


def _series(skew_DHH: Wide, terms: int) -> Wide:
    """Return the first terms of the Cayley transform's Neumann series, summed as PEFT does."""
    total = np.broadcast_to(np.eye(skew_DHH.shape[-1]), skew_DHH.shape).copy()
    power = skew_DHH
    if terms > 1:
        total += 2 * power
    if terms > 2:
        power = skew_DHH @ skew_DHH
        total += 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew_DHH
            total += 2 * power
        total += power @ skew_DHH
    return total


OFT = Method(
    folded_fields(
        {"block_share", "use_cayley_neumann", "num_cayley_neumann_terms"},
        # The tensors' shapes tell number and size of the blocks.
        {"r", "oft_block_size", "module_dropout", "eps"},
        refused={"coft": "PEFT changes its weights at each use", **_NO_BIAS},
        harmless={"bias": ("none",)},
    ),
    None,
    8,
    (".oft_R.weight",),
    merge=_oft,
)
BOFT = Method(
    folded_fields(
        (),
        {"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout"},
        refused=_NO_BIAS,
        harmless={"bias": ("none",)},
    ),
    None,
    8,
    (".boft_R", ".boft_s"),
    merge=_boft,
)
