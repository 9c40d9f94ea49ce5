"""Texts that a model reads as wholes, and what is kept of them between steps."""

from dataclasses import dataclass, field
from typing import Any

from loramux_server.lora.virtual import Virtual

Owner = tuple[str, str | None]
"""Tenant, and digest of the adapter; None for the base."""


@dataclass(slots=True)
class Recall:
    """What a decoder behind an encoder keeps of one request."""

    encoded: Any = None
    """What the encoder made of the source, as the model's own forward takes it; None before."""
    cache: Any = None
    """Keys and values of the source and of what was written, as a cache of transformers."""
    num_written: int = 0
    """Tokens of what was written that are in it."""
    before: Any = None
    """The cache before the last of them, where that came alone and cannot be taken out again."""


@dataclass(frozen=True, slots=True)
class WholeText:
    """The text of one request of a batch."""

    second_from: int = 0
    """Position at which the second of two texts begins; 0 where there is none."""
    num_source: int = 0
    """Tokens at its beginning that an encoder reads, where a decoder reads the others."""
    start: int = 0
    """Position of its first token in the batch."""
    owner: Owner | None = None
    """Whose it is; None where nothing is kept of it for others."""
    virtual: Virtual | None = None
    """What its adapter brings of keys and values, which stand before all tokens that are attended
    to; where there is a decoder, before what that writes."""
    recall: Recall = field(default_factory=Recall)
