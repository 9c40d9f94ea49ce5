"""How a model that writes another text than it reads begins, and what it never writes."""

from msgspec import Struct


class Writing(Struct, frozen=True, kw_only=True):
    """What such a model says of the texts that it writes; transformers' `generate` heeds it."""

    decoder_start: int
    """The token before the first one."""
    forced_bos: int | None = None
    """The first one, whatever the model would choose; None where it chooses."""
    forbidden: list[int] = []
    """Tokens that never come."""
