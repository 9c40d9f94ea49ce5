"""Texts that a model reads whole (encoders), and what is cached of them between steps."""

from dataclasses import dataclass, field
from typing import Any

from loramux_server.lora.virtual import Virtual

Owner = tuple[str, str | None]
"""Tenant, and digest of the adapter or None for the base."""


@dataclass(slots=True)
class Seq2SeqState:
    """State of one request of an encoder-decoder model."""

    encoded: Any = None
    """Encoder output for the source, as the model's forward takes it; None until computed."""
    cache: Any = None
    """Keys and values of source and output (cross- and self-attention), a transformers cache."""
    num_written: int = 0
    """Output tokens in it."""
    before: Any = None
    """The cache before the last one, if that was added alone and cannot be removed again."""


@dataclass(frozen=True, slots=True)
class EncoderText:
    """The text of one request of a batch."""

    second_from: int = 0
    """Position at which the second text of a pair begins; 0 if there is none."""
    num_source: int = 0
    """Leading tokens that the encoder reads; the decoder reads the others. 0 without a decoder."""
    start: int = 0
    """Position of its first token in the batch."""
    owner: Owner | None = None
    """Whose it is; None where nothing of it may be shared with other requests."""
    virtual: Virtual | None = None
    """Keys and values of its adapter's virtual tokens, which precede all attended tokens; in an
    encoder-decoder model, those of the decoder."""
    state: Seq2SeqState = field(default_factory=Seq2SeqState)
