"""How long a text may be for a row to be what the model alone makes of it."""

from transformers import PreTrainedConfig

_DEFAULT = 2048
_WITHOUT_ATTENTION = 1 << 15
"""Of a model that has no positions; to say how much is remembered is up to who trained it."""


def context_length(config: PreTrainedConfig, windows: dict[int, int]) -> int:
    """Return the longest context that is served.

    Args:
        config: The text model's config.
        windows: Layer number -> how many tokens a token sees there, as attention is told; 0 means
            all before it.
    """
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0)
    default = _DEFAULT if windows else _WITHOUT_ATTENTION
    return int(min([length or default, *_limits(config, windows)]))


def _limits(config: PreTrainedConfig, windows: dict[int, int]) -> list[int]:
    """Return the lengths beyond which the model does what is not served."""
    limits = []
    kinds = getattr(config, "layer_types", None) or [None] * len(windows)
    parameters = getattr(config, "rope_parameters", None) or {}
    # These switch to other frequencies for a whole batch when one of its requests grows long, so a
    # row would depend on its neighbours: stay where they do not.
    if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
        limits.append(parameters.get("original_max_position_embeddings"))
    # Attention is not told of what a model puts into its mask alone: stay where the mask is causal.
    if "chunked_attention" in kinds:
        limits.append(config.attention_chunk_size)
    if any(
        windows.get(layer) == 0 and kind != "full_attention" for layer, kind in enumerate(kinds)
    ):
        limits.append(getattr(config, "sliding_window", None))
    # Scales of the scores that go by the place in the batch; all are 1 before this.
    if getattr(config, "attn_temperature_tuning", None):
        limits.append(config.floor_scale - 1)
    return [limit for limit in limits if limit]
