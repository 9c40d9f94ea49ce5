"""Kinds of text models: encoder-decoders and encoders. Needs only transformers."""

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
)


def is_encoder_decoder(config: PreTrainedConfig) -> bool:
    """Return whether the model is an encoder-decoder that generates text."""
    return config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING


def is_encoder(config: PreTrainedConfig) -> bool:
    """Return whether the model is an encoder, which generates no text."""
    is_decoder = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder
