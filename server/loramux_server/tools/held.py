"""Text that has come and is not known yet for what it is."""

import re
from collections.abc import Collection, Sequence

_NO_SPACE = re.compile(r"\S")


class UnfinishedError(Exception):
    """What is held may be something, once more has come."""


class Held:
    """The text, and what is at a place of it. White space between words is passed over."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def taken(self, end: int) -> str:
        """Return the text before `end`, and hold what follows."""
        text, self.text = self.text[:end], self.text[end:]
        return text

    def after_word(self, word: str, at: int) -> int | None:
        """Return where after a word at `at`, and white space, the text goes on; None if it lacks.

        Raises:
            UnfinishedError: It goes on.
        """
        at = self.spaced(at)
        if self.word(at, [word]) is None:
            return None
        return self.spaced(at + len(word))

    def after_words(self, words: Sequence[str], at: int) -> int | None:
        """Return where after all of `words`, and white space, the text goes on; None if one lacks.

        Raises:
            UnfinishedError: It goes on.
        """
        for word in words:
            found = self.after_word(word, at)
            if found is None:
                return None
            at = found
        return at

    def word(self, at: int, words: Collection[str]) -> str | None:
        """Return which of `words` is at `at`, the longest; None if there is none.

        Raises:
            UnfinishedError: A longer one may be, once more has come.
        """
        here = [word for word in words if self.text.startswith(word, at)]
        rest = self.text[at : at + max(map(len, words), default=0)]
        longest = max(here, key=len, default="")
        if any(len(word) > len(longest) and word.startswith(rest) for word in words):
            raise UnfinishedError
        return longest or None

    def spaced(self, at: int) -> int:
        """Return where after white space from `at` on the text goes on.

        Raises:
            UnfinishedError: It does not, yet.
        """
        found = _NO_SPACE.search(self.text, at)
        if found is None:
            raise UnfinishedError
        return found.start()
