"""Generation settings of encoder-decoder models: forced and suppressed tokens."""

from msgspec import Struct


class Writing(Struct, frozen=True, kw_only=True):
    """The settings that transformers' `generate` takes from such a model."""

    decoder_start: int
    """Decoder start token, before the first generated one."""
    forced_bos: int | None = None
    """Forced first token; None if the model chooses it."""
    forbidden: list[int] = []
    """Suppressed tokens, which are never generated."""
