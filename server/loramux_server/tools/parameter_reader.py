"""Parameters of a call that are written one by one, in a text that arrives in pieces."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from loramux_server.tools.held import Held, UnfinishedError
from loramux_server.tools.syntax import Parameters, joined, marks_of

MAX_NAME = 256
"""Characters of the name of a parameter."""
_MAX_MARK = 256
"""Characters that are looked at to see whether something ends."""


class Given(NamedTuple):
    """A parameter of a call, as it was written."""

    name: str
    text: str
    is_string: bool | None
    """None where that is not told."""


class ParameterReader:
    """Looks at each character of a call's parameters once or twice, in however many pieces.

    A value ends where it is closed and then another one is opened or the call ends, so that a
    value may hold what closes it, or what opens another.
    """

    def __init__(self, syntax: Parameters, ends: Collection[str], begin: int) -> None:
        """Read the parameters that begin at `begin`.

        Args:
            syntax: How they are written.
            ends: The words with one of which the rest of the call begins.
            begin: Where after the name of a call the text goes on.
        """
        self._opening = marks_of(syntax.opening)
        ways = {syntax.between: True, syntax.between_others: False}
        self._betweens = [
            (marks_of(way), is_string if syntax.tells_strings else None)
            for way, is_string in ways.items()
        ]
        self._closing = marks_of(syntax.closing)
        between, closing = joined(syntax.between), joined(syntax.closing)
        # White space that belongs to what stands around a value.
        self._before = between[len(between.rstrip()) :]
        self._after = closing[: -len(closing.lstrip())]
        self._wrapping = syntax.wrapping
        self._ends = [[word] for word in ends]
        self.at = begin
        """Up to where all is read: what follows is a parameter, or the value of one."""
        self._name: str | None = None
        """Of the parameter whose value is read."""
        self._is_string: bool | None = None
        self._seen = begin
        """Up to where it is known that the value goes on."""
        self.found: list[Given] = []

    def find(self, text: str) -> int | None:
        """Return where the last parameter ends; None if they go on.

        Args:
            text: All that has come; each time at least what it was the time before.

        Raises:
            ValueError: These are no parameters of a call.
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
            UnfinishedError: That is not known yet.
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
            UnfinishedError: It goes on.
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
        """Return what stands around the value, if it is a string around which something does.

        Raises:
            UnfinishedError: That is not known yet.
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
        """Return whether a value that would end at `at` ends what stands around it."""
        if inside is None:
            return True
        least = self.at + len(self._before + inside[0])
        begin = max(least, at - len(inside[1] + self._after))
        return text[begin:at].removesuffix(self._after).endswith(inside[1])

    def _is_end(self, text: str, at: int) -> bool:
        return any(_after(text, at, word) is not None for word in self._ends)


def _after(text: str, at: int, words: Sequence[str]) -> int | None:
    """Return where after `words` at `at` the text goes on; None if they are not there.

    There may be white space before each.

    Raises:
        UnfinishedError: That is not known yet.
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
