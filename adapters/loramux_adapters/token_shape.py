"""What a base model makes of a token, which virtual tokens have to be alike."""

from collections.abc import Mapping
from dataclasses import dataclass

_WIDTHS = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")


@dataclass(frozen=True, slots=True)
class TokenShape:
    """The sizes of an embedding, and of what layers keep of a token."""

    width: int
    """Of an embedding."""
    cache: tuple[tuple[int, int, int], ...]
    """Of each layer: heads that keep something, width of a key, width of a value."""


def token_shape(config: Mapping[str, object]) -> TokenShape | None:
    """Return what a model of the parsed `config.json` makes of a token; None if it does not say."""
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = inner
    width, num_layers, num_heads = (_first(config, each) for each in (_WIDTHS, _LAYERS, _HEADS))
    if not width or not num_layers or not num_heads:
        return None
    num_kept = _first(config, ("num_key_value_heads",)) or num_heads
    head_width = _first(config, ("head_dim",)) or width // num_heads
    embedding = _first(config, ("word_embed_proj_dim",)) or width
    return TokenShape(embedding, ((num_kept, head_width, head_width),) * num_layers)


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    """Return the first of the sizes `names` that there is; 0 if there is none."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 < value < 1 << 20), 0)
