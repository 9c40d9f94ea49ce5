"""The chat template and tokens of an adapter, where they differ from its base model's."""

from dataclasses import dataclass

from loramux_adapters.added_tokens import AddedToken


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Which template is run, and with which tokens."""

    template: str | None = None
    """The adapter's own; None for the base model's."""
    added_tokens: tuple[AddedToken, ...] = ()
    """Tokens that the base model's tokenizer lacks."""
    special_tokens: tuple[tuple[str, str], ...] = ()
    """Pairs of a template variable, such as `eos_token`, and its token, where that differs from
    the base model's."""


EOS_TOKEN = "eos_token"
"""The template variable for the end-of-sequence token."""
OF_BASE = ChatFormat()
"""The format of the base model."""
