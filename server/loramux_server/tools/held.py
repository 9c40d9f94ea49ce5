"""Text that was received but cannot be classified yet."""

import re
from collections.abc import Collection, Sequence

_NO_SPACE = re.compile(r"\S")


class UnfinishedError(Exception):
    """More text is needed to classify what is held."""


class Held:
    """Held text, with methods to match words in it. White space between words is skipped."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def taken(self, end: int) -> str:
        """Remove and return the text before `end`."""
        text, self.text = self.text[:end], self.text[end:]
        return text

    def after_word(self, word: str, at: int) -> int | None:
        """Return the offset after `word` at `at` and white space; None if it is not there.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        at = self.spaced(at)
        if self.word(at, [word]) is None:
            return None
        return self.spaced(at + len(word))

    def after_words(self, words: Sequence[str], at: int) -> int | None:
        """Return the offset after all of `words` at `at` and white space; None if one is missing.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        for word in words:
            found = self.after_word(word, at)
            if found is None:
                return None
            at = found
        return at

    def word(self, at: int, words: Collection[str]) -> str | None:
        """Return the longest of `words` that is at `at`; None if there is none.

        Raises:
            UnfinishedError: With more text, it may be a longer one.
        """
        here = [word for word in words if self.text.startswith(word, at)]
        rest = self.text[at : at + max(map(len, words), default=0)]
        longest = max(here, key=len, default="")
        if any(len(word) > len(longest) and word.startswith(rest) for word in words):
            raise UnfinishedError
        return longest or None

    def spaced(self, at: int) -> int:
        """Return the offset of the first character from `at` on that is no white space.

        Raises:
            UnfinishedError: There is none yet.
        """
        found = _NO_SPACE.search(self.text, at)
        if found is None:
            raise UnfinishedError
        return found.start()
