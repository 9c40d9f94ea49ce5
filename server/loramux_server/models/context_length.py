"""The context length up to which a row equals what the model alone computes."""

from transformers import PreTrainedConfig

_DEFAULT = 2048
_WITHOUT_ATTENTION = 1 << 15
"""For models without positions; how much of that they remember depends on their training."""


def context_length(config: PreTrainedConfig, windows: dict[int, int]) -> int:
    """Return the longest context that is served.

    Args:
        config: The text model's config.
        windows: Layer number -> sliding window passed to attention; 0 means none.
    """
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0)
    default = _DEFAULT if windows else _WITHOUT_ATTENTION
    return int(min([length or default, *_limits(config, windows)]))


def _limits(config: PreTrainedConfig, windows: dict[int, int]) -> list[int]:
    """Return the lengths above which the model does something that is not served."""
    limits = []
    kinds = getattr(config, "layer_types", None) or [None] * len(windows)
    parameters = getattr(config, "rope_parameters", None) or {}
    # longrope switches the frequencies of a whole batch when one request grows long, so a row would
    # depend on its neighbours: stay below that length.
    if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
        limits.append(parameters.get("original_max_position_embeddings"))
    # Attention does not see what a model expresses only in its mask: stay where the mask is causal.
    if "chunked_attention" in kinds:
        limits.append(config.attention_chunk_size)
    if any(
        windows.get(layer) == 0 and kind != "full_attention" for layer, kind in enumerate(kinds)
    ):
        limits.append(getattr(config, "sliding_window", None))
    # Score scales that depend on the index in the batch; all are 1 before this length.
    if getattr(config, "attn_temperature_tuning", None):
        limits.append(config.floor_scale - 1)
    return [limit for limit in limits if limit]
