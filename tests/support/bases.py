"""A base for tests of what may be served on one."""

from loramux_adapters.token_shape import TokenShape
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.weight_format import AS_SAVED

ROOMY = ServedBase(
    layers={},
    parameters={},
    vision_layers={},
    vision_parameters={},
    no_vision_reason="the base model, Base, does not support images",
    experts={},
    heads={},
    vocabulary=BaseVocabulary(),
    max_rows=64,
    max_host_bytes=1 << 30,
    storage_format=AS_SAVED,
    vocab_size=1 << 31,
    tokenizer_json=None,
    row_bytes=1 << 20,
    takes_edits=True,
    token=TokenShape(4, ()),
    context_length=1 << 31,
)
"""Has room for anything, and no layers; tests replace what they are about."""

SMALL = {"model.layers.0.self_attn.q_proj": (3, 4)}
"""The layers that the packages of tests/support/packages.py change."""
