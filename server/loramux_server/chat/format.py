"""How conversations are written for an adapter, where that differs from its base model."""

from dataclasses import dataclass

from loramux_adapters.added_tokens import AddedToken


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What templates are run, and with which tokens."""

    template: str | None = None
    """The adapter's own; None for the base model's."""
    added_tokens: tuple[AddedToken, ...] = ()
    """Tokens that the base model's tokenizer lacks."""
    special_tokens: tuple[tuple[str, str], ...] = ()
    """Names that templates have for tokens, such as `eos_token`, where they mean others than with
    the base model."""


EOS_TOKEN = "eos_token"
"""The special token with which a text ends."""
OF_BASE = ChatFormat()
"""That of the base model."""
