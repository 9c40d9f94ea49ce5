"""Where the `adapters` library inserts bottlenecks into a layer.

They follow attention or the MLP, whose output h is added to the residual x. In pre-norm models
(decoders, T5, mBART), x is the input of the norm. In post-norm models (BERT, BART), x is the input
of the first linear layer.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

_ATTENTION = "attention.output.dense", "attention.output.LayerNorm"
_SITES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "attention_adapters": (
        ("input_layernorm", "self_attn.o_proj", ""),
        ("ln_1", "attn.c_proj", ""),
        ("attention.q_lin", "attention.out_lin", "sa_layer_norm"),
        ("self_attn.q_proj", "self_attn.out_proj", "self_attn_layer_norm"),
    ),
    "output_adapters": (
        ("post_attention_layernorm", "mlp.down_proj", ""),
        ("ln_2", "mlp.c_proj", ""),
        ("ffn.lin1", "ffn.lin2", "output_layer_norm"),
        ("fc1", "fc2", "final_layer_norm"),
        ("ffn", "ffn_output", "full_layer_layer_norm"),
    ),
    "cross_attention_adapters": (
        ("encoder_attn.q_proj", "encoder_attn.out_proj", "encoder_attn_layer_norm"),
    ),
    "attention.attention_adapters": (
        ("attention.query", "attention.dense", "attention.LayerNorm"),
    ),
    "attention.output": (
        ("attention.self.query", *_ATTENTION),
        ("attention.self.query_proj", *_ATTENTION),
        ("attention.self.in_proj", *_ATTENTION),
    ),
    "output": (("intermediate.dense", "output.dense", "output.LayerNorm"),),
    "layer.0": (("layer.0.layer_norm", "layer.0.SelfAttention.o", ""),),
    "layer.1": (
        ("layer.1.layer_norm", "layer.1.EncDecAttention.o", ""),
        ("layer.1.layer_norm", "layer.1.DenseReluDense.wo", ""),
    ),
    "layer.2": (("layer.2.layer_norm", "layer.2.DenseReluDense.wo", ""),),
}
"""Place -> for each kind of layer, the module that reads x, the layer that outputs h, and the norm
after their sum."""
_EXCHANGED = frozenset({"attention.attention_adapters"})
PLACES = tuple(_SITES)
"""The library's names for inserted modules, or the module that it inserts them into."""


@dataclass(frozen=True, slots=True)
class Site:
    """The modules around the sum of h and x, by their names in a base."""

    residual: str
    """The module that reads x."""
    output: str
    """The layer that outputs h."""
    norm: str = ""
    """The norm after the sum; empty for pre-norm."""
    is_exchanged: bool = False
    """Whether the library swaps x and h, as in ALBERT's attention."""


def site_of(layer: str, place: str, layers: Container[str], others: Container[str]) -> Site | None:
    """Return where a bottleneck is inserted in a base; None if the base has no such layer.

    Args:
        layer: Name of a transformer layer.
        place: One of `PLACES`.
        layers: Names of the base's linear layers; may contain more.
        others: Names of its other modules that have parameters; may contain more.
    """
    for residual, output, norm in _SITES[place]:
        if f"{layer}.{output}" not in layers:
            continue
        if norm and not (f"{layer}.{residual}" in layers and f"{layer}.{norm}" in others):
            continue
        stack = layer.rpartition(".")[0].rpartition(".")[0]
        # A norm after all layers means that the layers are pre-norm.
        if norm and f"{stack}.layer_norm" in others:
            return Site(f"{layer}.{norm}", f"{layer}.{output}")
        return Site(
            f"{layer}.{residual}",
            f"{layer}.{output}",
            norm and f"{layer}.{norm}",
            is_exchanged=place in _EXCHANGED,
        )
    return None
