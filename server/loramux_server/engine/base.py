"""What the engine knows of the base model beside what runs it."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.wire.weight_format import AS_SAVED, Resting


@dataclass(frozen=True, slots=True)
class Base:
    """What requests are made by."""

    block_size: int
    """Tokens in a KV block."""
    eos_token_ids: Sequence[int] = ()
    """The tokens with which the model ends a text."""
    vocab_size: int | None = None
    """Tokens of the base; None if that makes no difference."""
    reads_whole: bool = False
    """Whether the base reads texts as wholes."""
    resting: Resting = AS_SAVED
    """In which format an adapter rests in memory."""
