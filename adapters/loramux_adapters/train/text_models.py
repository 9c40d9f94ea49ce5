"""What a base model makes of a text, by its config. Needs transformers alone."""

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
)


def writes_another(config: PreTrainedConfig) -> bool:
    """Return whether it has an encoder that reads a text, and a decoder that writes another."""
    return config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING


def only_reads(config: PreTrainedConfig) -> bool:
    """Return whether it is an encoder alone, which continues no text."""
    is_decoder = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder
