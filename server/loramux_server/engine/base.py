"""What the engine knows about the base model, apart from how to run it."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.wire.weight_format import AS_SAVED, StorageFormat


@dataclass(frozen=True, slots=True)
class Base:
    """Properties of the base model that requests depend on."""

    block_size: int
    """Tokens in a KV block."""
    eos_token_ids: Sequence[int] = ()
    """End-of-sequence tokens."""
    vocab_size: int | None = None
    """Vocabulary size of the base; None if it does not matter."""
    has_encoder: bool = False
    """Whether the base has an encoder, so that it reads a text as a whole, in one chunk."""
    storage_format: StorageFormat = AS_SAVED
    """Storage format of adapters in memory."""
