"""VB-LoRA as plain LoRA.

Method: Li et al., "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks" (arXiv
2405.15179). Fields and tensors: `peft.tuners.vblora`, PEFT 0.21.

A and B consist of pieces, each a mixture of K vectors of a bank that all layers share. For each
piece PEFT saves the logits of all vectors, of which the K largest count; with
`save_only_topk_weights` it saves their indices, and the weights of all but the last.

Legend: R rank, I input features, O output features, N vectors, L their length, K of them mixed.
"""

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import integer
from loramux_adapters.weights.fold import Layer, Method, Parts, part, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors, Wide

_BANK = "base_model.vblora_vector_bank"
_MAX_SIZE = 1 << 20


def _vblora(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    pieces = {half: _pieces(layer, parts, f".vblora_logits_{half}") for half in "AB"}
    a, b = pieces["A"], pieces["B"]  # [R, I / L, L] and [O / L, R, L]
    if len(a) != layer.rank or b.shape[1] != layer.rank:
        raise PackageError(
            f"module {layer.module}: its logits have ranks {len(a)} and {b.shape[1]}, but "
            f"adapter_config.json has r = {layer.rank}"
        )
    return (b.transpose(0, 2, 1).reshape(-1, layer.rank), a.reshape(layer.rank, -1)), 0.0


def _pieces(layer: Layer, parts: Parts, name: str) -> Wide:
    """Return the pieces of one factor, with the vectors in the last dimension."""
    bank_NL = shaped(layer, parts, _BANK, None, None)
    topk = integer(layer.config, "topk", 2, 1, min(_MAX_SIZE, len(bank_NL)))
    if layer.config.get("save_only_topk_weights"):
        chosen = part(layer, parts, f"{name}_topk_indices")
        shares = shaped(layer, parts, f"{name}_topk_weights", *chosen.shape[:-1], topk - 1)
        shares = np.concatenate([shares, 1 - shares.sum(-1, keepdims=True)], -1)
        if chosen.shape != shares.shape or not ((chosen >= 0) & (chosen < len(bank_NL))).all():
            raise PackageError(
                f"module {layer.module}: {name.removeprefix('.')}_topk_indices are not {topk} "
                f"indices each, from 0 to {len(bank_NL) - 1}"
            )
    else:
        logits = shaped(layer, parts, name, None, None, len(bank_NL))
        chosen = np.argpartition(-logits, topk - 1, axis=-1)[..., :topk]
        largest = np.take_along_axis(logits, chosen, -1)
        shares = np.exp(largest - largest.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
    mixed: Wide = (shares[..., None] * bank_NL[chosen]).sum(-2)
    return mixed


VBLORA = Method(
    folded_fields(
        {"r", "topk", "save_only_topk_weights"},
        {
            "num_vectors", "vector_length", "vblora_dropout", "init_vector_bank_bound",
            "init_logits_std",
        },
        absent={"init_weights"},
    ),
    None,
    4,
    tuple(
        f".vblora_logits_{half}{what}"
        for half in "AB"
        for what in ("", "_topk_indices", "_topk_weights")
    ),
    _vblora,
    shared=(_BANK,),
    bias_only="vblora_only",
)  # fmt: skip
