"""Incremental detokenization."""

from collections.abc import Sequence, Set

from tokenizers import Tokenizer

_MAX_CONTEXT = 6
"""Tokens at the end of a prompt that may affect the first text after it, such as a space."""


_MAX_BYTES = 4
"""Maximum bytes of a character in UTF-8."""


_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What the library decodes invalid or incomplete bytes to."""


class TextDecoder:
    """Detokenizes incrementally without ever splitting a character.

    The library's own `DecodeStream` decodes everything since the last whole character again for
    each token: 20,000 tokens that never form one, which any caller can force by a bias, took it 52
    seconds. This one only decodes a few tokens, so that a token costs the same however long the
    text is: those that gave the last piece of text, because a space may depend on them, and those
    after it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], silent: Set[int]) -> None:
        """Decode what follows `prompt`; tokens in `silent` give no text."""
        self._tokenizer = tokenizer
        self._silent = silent
        self._window = self._context(prompt)
        self._num_given = len(self._window)
        self._given = self._decode(self._window)

    def step(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is incomplete."""
        if token in self._silent:
            return ""
        self._window.append(token)
        begin, end = self._num_given, len(self._window)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._given):
            if end - self._num_given <= _MAX_BYTES:
                return ""
            # The first of them cannot start a character: it would be complete by now.
            end = self._num_given + 1
            begin = max(0, end - _MAX_BYTES)
            text = self._decode(self._window[:end])
        piece = text[len(self._given) :]
        self._window = self._window[begin:]
        self._num_given = end - begin
        self._given = self._decode(self._window[: self._num_given])
        return piece

    def end(self) -> str:
        """Return the text of the tokens after the last complete character; nothing may follow."""
        return self._decode(self._window)[len(self._given) :]

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """Return the shortest suffix of `prompt` that is whole characters, or none."""
        for size in range(1, _MAX_CONTEXT + 1):
            end = [token for token in prompt[-size:] if token not in self._silent]
            text = self._decode(end)
            if text and _REPLACEMENT not in text:
                return end
        return []

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)
