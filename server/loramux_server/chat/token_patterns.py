"""The added tokens of a tokenizer, compiled for search."""

import re
from collections.abc import Iterable

from loramux_server.chat.messages import (
    TemplateTokens,
)

_ESCAPED = re.compile(r'["\\\x00-\x1f]')
"""Characters that JSON escapes."""


class Tokens:
    """The added tokens of a tokenizer, compiled for search."""

    def __init__(self, template_tokens: TemplateTokens) -> None:
        self.control = frozenset(template_tokens.control)
        self.others = frozenset(template_tokens.added)
        self.any = any_of([*template_tokens.control, *template_tokens.added])
        self.any_control = any_of(template_tokens.control)
        self.any_other = any_of(template_tokens.added)
        self.first = sorted(
            {token[0] for token in (*template_tokens.control, *template_tokens.added)}
        )
        """The first characters of all added tokens."""
        self.beginning = any_of(self.first)
        self.rest = sorted(set("".join(template_tokens.control)) - set(self.first))
        """Other characters of control tokens."""
        self.inner = any_of(set("".join(template_tokens.control)))
        self.beginning_in_json = any_of(
            char
            for char in self.first
            if not _ESCAPED.match(char)
            or any(token[0] == char for token in template_tokens.control)
        )


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of `texts`; of several that match, the longest."""
    longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
