"""Parsing arguments that are written one by one, from streamed text."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from loramux_server.tools.held import Held, UnfinishedError
from loramux_server.tools.syntax import Parameters, joined, marks_of

MAX_NAME = 256
"""Most characters of the name of a parameter."""
_MAX_MARK = 256
"""Lookahead, in characters, to match a delimiter."""


class Given(NamedTuple):
    """A parameter of a call, as it was written."""

    name: str
    text: str
    is_string: bool | None
    """None if the syntax does not tell."""


class ParameterReader:
    """Parses parameters incrementally; each character is read once or twice, however chunked.

    A value ends at a closing delimiter that the next parameter or the end of the call follows. So a
    value may contain the closing delimiter, or the opening one.
    """

    def __init__(self, syntax: Parameters, ends: Collection[str], begin: int) -> None:
        """Read the parameters that begin at `begin`.

        Args:
            syntax: How they are written.
            ends: Words of which one begins the rest of the call.
            begin: Offset of the text after the name of the call.
        """
        self._opening = marks_of(syntax.opening)
        ways = {syntax.between: True, syntax.between_others: False}
        self._betweens = [
            (marks_of(way), is_string if syntax.tells_strings else None)
            for way, is_string in ways.items()
        ]
        self._closing = marks_of(syntax.closing)
        between, closing = joined(syntax.between), joined(syntax.closing)
        # White space that belongs to the delimiters around a value.
        self._before = between[len(between.rstrip()) :]
        self._after = closing[: -len(closing.lstrip())]
        self._wrapping = syntax.wrapping
        self._ends = [[word] for word in ends]
        self.at = begin
        """All text before this offset is parsed; a parameter or the current value follows."""
        self._name: str | None = None
        """Name of the parameter whose value is being read; None between parameters."""
        self._is_string: bool | None = None
        self._seen = begin
        """The current value is known not to end before this offset."""
        self.found: list[Given] = []

    def find(self, text: str) -> int | None:
        """Return the offset at which the last parameter ends; None if they are incomplete.

        Args:
            text: All text received; each call extends the text of the previous one.

        Raises:
            ValueError: These are not the parameters of a call.
        """
        try:
            while self._name is not None or self._begin(text):
                self._end(text)
        except UnfinishedError:
            return None
        return self.at

    def _begin(self, text: str) -> bool:
        """Read up to the value of the next parameter; return whether there is one.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        begin = _after(text, self.at, self._opening)
        if begin is None:
            if self._is_end(text, self.at):
                return False
            raise ValueError("neither a parameter nor the end of a call")
        ((first, *_), _), *_ = self._betweens
        most = begin + MAX_NAME + len(first)
        end = text.find(first, begin, most)
        if end < 0:
            if len(text) >= most:
                raise ValueError(f"a name of more than {MAX_NAME} characters")
            raise UnfinishedError
        ways = [(_after(text, end, words), is_string) for words, is_string in self._betweens]
        value, self._is_string = max(ways, key=lambda way: way[0] or 0)
        if value is None:
            raise ValueError("no value after the name of a parameter")
        self.at = self._seen = value
        self._name = text[begin:end].strip()
        return True

    def _end(self, text: str) -> None:
        """Read the value.

        Raises:
            UnfinishedError: It is incomplete.
        """
        mark = self._closing[0]
        inside = self._wrapped(text)
        while True:
            at = text.find(mark, self._seen)
            if at < 0:
                self._seen = max(self._seen, len(text) - len(mark) + 1)
                raise UnfinishedError
            self._seen = at
            end = _after(text, at, self._closing)
            if (
                end is not None
                and self._is_whole(text, at, inside)
                and (_after(text, end, self._opening) is not None or self._is_end(text, end))
            ):
                break
            self._seen = at + 1
        assert self._name is not None
        value = text[self.at : at].removeprefix(self._before).removesuffix(self._after)
        if inside is None:
            self.found.append(Given(self._name, value, self._is_string))
        else:
            value = value[len(inside[0]) : -len(inside[1])]
            self.found.append(Given(self._name, value, is_string=True))
        self.at, self._name = end, None

    def _wrapped(self, text: str) -> tuple[str, str] | None:
        """Return the wrapping of the value; None if it is not wrapped.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        if self._wrapping is None:
            return None
        opening = self._before + self._wrapping[0]
        begun = text[self.at : self.at + len(opening)]
        if begun == opening:
            return self._wrapping
        if opening.startswith(begun):
            raise UnfinishedError
        return None

    def _is_whole(self, text: str, at: int, inside: tuple[str, str] | None) -> bool:
        """Return whether a value that would end at `at` has the end of its wrapping, if any."""
        if inside is None:
            return True
        least = self.at + len(self._before + inside[0])
        begin = max(least, at - len(inside[1] + self._after))
        return text[begin:at].removesuffix(self._after).endswith(inside[1])

    def _is_end(self, text: str, at: int) -> bool:
        return any(_after(text, at, word) is not None for word in self._ends)


def _after(text: str, at: int, words: Sequence[str]) -> int | None:
    """Return the offset after `words` at `at`; None if they are not there.

    White space may precede each.

    Raises:
        UnfinishedError: More text is needed to tell.
    """
    held = Held(text[at : at + _MAX_MARK])
    end = 0
    try:
        for word in words:
            begin = held.spaced(end)
            if held.word(begin, [word]) is None:
                return None
            end = begin + len(word)
    except UnfinishedError:
        if len(held.text) < _MAX_MARK:
            raise
        return None
    return at + end
