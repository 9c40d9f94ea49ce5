"""Sizes of a base model's embeddings and KV cache, which virtual tokens have to match."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")
_DECODER_HEADS = ("decoder_attention_heads",)
_EMBEDDING_WIDTHS = ("word_embed_proj_dim", "embedding_size")
"""Width of an embedding, where it is not the hidden size."""
_HEAD_WIDTHS = ("head_dim", "d_kv")
_KINDS = ("layer_types", "layers_block_type")
_RECURRENT = frozenset({"linear_attention", "recurrent", "mamba", "conv"})


@dataclass(frozen=True, slots=True)
class TokenShape:
    """The sizes of a token's embedding and of its KV cache entries."""

    width: int
    """Width of an embedding."""
    cache: tuple[tuple[int, int, int], ...]
    """For each layer: number of KV heads, width of a key, width of a value."""
    has_recurrent_layers: bool = False
    """Whether some layers keep a recurrent state instead of keys and values."""
    num_sequences: int = 1
    """Sequences per request: 2 for an encoder-decoder, else 1."""


def token_shape(config: Mapping[str, object]) -> TokenShape | None:
    """Return the `TokenShape` by a parsed `config.json`; None if that lacks a size."""
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = inner
    num_sequences = 2 if config.get("is_encoder_decoder") is True else 1
    # In an encoder-decoder, only the decoder has a KV cache.
    of_decoder = (_DECODER_LAYERS, _DECODER_HEADS) if num_sequences > 1 else ((), ())
    width = _first(config, _WIDTHS)
    num_layers = _first(config, (*of_decoder[0], *_LAYERS))
    num_heads = _first(config, (*of_decoder[1], *_HEADS))
    if not width or not num_layers or not num_heads:
        return None
    num_kept = _first(config, ("num_key_value_heads",)) or num_heads
    head_width = _first(config, _HEAD_WIDTHS) or width // num_heads
    embedding = _first(config, _EMBEDDING_WIDTHS) or width
    cache = ((num_kept, head_width, head_width),) * num_layers
    return TokenShape(embedding, cache, _has_recurrent_layers(config), num_sequences)


def _has_recurrent_layers(config: Mapping[str, object]) -> bool:
    """Return whether any layer is recurrent; without layer types, whether the model is a Mamba."""
    kinds = next((config[name] for name in _KINDS if isinstance(config.get(name), list)), None)
    if isinstance(kinds, list):
        return any(kind in _RECURRENT for kind in kinds if isinstance(kind, str))
    return any(name.startswith("mamba") for name in (*config, str(config.get("model_type"))))


def _first(config: Mapping[str, object], names: Sequence[str]) -> int:
    """Return the first valid size among the fields `names`; 0 if there is none."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 < value < 1 << 20), 0)
