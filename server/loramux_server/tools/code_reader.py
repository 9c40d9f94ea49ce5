"""Parsing arguments that are written as code, from streamed text."""

import enum
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from loramux_server.tools.arguments import MAX_DEPTH, NAME
from loramux_server.tools.escapes import unescaped
from loramux_server.tools.held import Held, UnfinishedError
from loramux_server.tools.syntax import Code

_QUOTES = ('"', "'", '"""', "'''")
_WORD = re.compile(r"[^\s,=:()\[\]{}'\"]+")
"""A number, a name such as `true`, or the name of an argument."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NAMED = {"true": True, "false": False, "null": None} | {"True": True, "False": False, "None": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
MAX_QUOTE = 16
"""Most characters of a quote."""
_MAX_WORD = 256
"""Most characters of a number or a name."""
_MAX_AFTER = 256
"""Lookahead, in characters, to tell whether a string ends."""


def is_word(name: str) -> bool:
    """Return whether an argument may have this name."""
    return len(name) <= _MAX_WORD and _WORD.fullmatch(name) is not None


class _State(enum.Enum):
    """The state of the reader: what is being read."""

    KEY = enum.auto()
    """A key, or the closing bracket."""
    ASSIGN = enum.auto()
    VALUE = enum.auto()
    """A value, or in a list its closing bracket."""
    NEXT = enum.auto()
    """What follows a value: a comma, or the closing bracket."""
    STRING = enum.auto()


@dataclass(slots=True)
class _Open:
    """Open brackets and their content so far."""

    end: str
    values: list[Any] | None
    """The values of a list; None in an object."""
    named: dict[str, Any] = field(default_factory=dict)
    """The values of an object."""
    key: str = ""


class CodeReader:
    """Parses arguments incrementally; each character is read once or twice, however it is chunked.

    Nothing is evaluated: values are strings, numbers, lists, objects, booleans and null, as Python
    or JSON spells them. Models forget to escape quotes, so a string that is an argument ends only
    where the next argument or the end of the call follows.
    """

    def __init__(self, code: Code, ends: Collection[str], begin: int) -> None:
        """Read the arguments that begin, with their opening bracket, at `begin`.

        Args:
            code: How they are written.
            ends: Words of which one begins the rest of the call; if empty, a string ends at its
                first closing quote.
            begin: Their offset in the text.
        """
        quote = code.quote.text if code.quote else ""
        self._special = "" if quote in _QUOTES else quote
        """A quote that strings cannot contain, so that it needs no escapes."""
        self._quotes = {*_QUOTES, *filter(None, [quote])}
        self._is_bare = code.quote is None
        self._opening, self._assign = code.begin.strip(), code.assign.strip()
        self._ends: Collection[str] = ends
        self._open = [_Open(code.end.strip(), None)]
        self._end = self._open[0].end
        self._state = _State.KEY
        self._quote = ""
        """The quote of the current string; empty if it has none."""
        self._is_key = False
        """Whether the current string is a key."""
        self._seen = begin
        """The current string is known not to end before this offset."""
        self.at = begin + len(self._opening)
        """All text before this offset is parsed; the current string or unread text follows."""
        self.found: dict[str, Any] = self._open[0].named

    def find(self, text: str) -> int | None:
        """Return the offset at which the arguments end; None if they are incomplete.

        Args:
            text: All text received; each call extends the text of the previous one.

        Raises:
            ValueError: These are not the arguments of a call.
        """
        try:
            while self._open:
                if self._state is _State.STRING:
                    self._string(text)
                else:
                    self._step(text)
        except UnfinishedError:
            return None
        return self.at

    def end(self) -> None:
        """Expect nothing after the arguments: the completion has ended."""
        self._ends = ()

    def _step(self, text: str) -> None:
        """Read the next symbol; of a string, its opening quote.

        Raises:
            UnfinishedError: It is incomplete.
        """
        self.at = at = Held(text).spaced(self.at)
        inner, char = self._open[-1], text[at]
        is_list = inner.values is not None
        if char == inner.end and (self._state in (_State.KEY, _State.NEXT) or is_list):
            self._close()
        elif self._state is _State.NEXT:
            self._demand(char == ",")
            self._pass(1, _State.VALUE if is_list else _State.KEY)
        elif self._state is _State.ASSIGN:
            self._demand(char in "=:")
            self._pass(1, _State.VALUE)
        elif quote := Held(text[at : at + MAX_QUOTE]).word(0, self._quotes):
            self._begin(quote)
        elif self._state is _State.VALUE and char in _CLOSING:
            self._demand(len(self._open) < MAX_DEPTH)
            self._open.append(_Open(_CLOSING[char], None if char == "{" else []))
            self._pass(1, _State.KEY if char == "{" else _State.VALUE)
        else:
            self._word(text)

    def _word(self, text: str) -> None:
        """Read a key, a named value, a number, or the start of a string without quotes.

        Raises:
            UnfinishedError: It is incomplete.
        """
        found = _WORD.match(text, self.at, self.at + _MAX_WORD + 1)
        word = found[0] if found else ""
        is_long = len(word) > _MAX_WORD
        if self.at + len(word) == len(text) and not is_long:
            raise UnfinishedError
        if self._state is _State.KEY:
            self._demand(word != "" and not is_long)
            self._open[-1].key = word
            self._pass(len(word), _State.ASSIGN)
            return
        is_value = not is_long and bool(word in _NAMED or _NUMBER.fullmatch(word))
        is_bare = self._is_bare and len(self._open) == 1
        if is_bare and not (is_value and self._is_alone(text, self.at + len(word))):
            self._begin("")
            return
        self._demand(is_value)
        self.at += len(word)
        if word in _NAMED:
            self._put(_NAMED[word])
        else:
            self._put(int(word) if _INTEGER.fullmatch(word) else float(word))

    def _begin(self, quote: str) -> None:
        """Begin a string after `quote`."""
        self._is_key = self._state is _State.KEY
        self._quote = quote
        self._pass(len(quote), _State.STRING)
        self._seen = self.at

    def _string(self, text: str) -> None:
        """Read a string up to its end.

        Raises:
            UnfinishedError: It is incomplete.
        """
        quote = self._quote
        is_escaped = quote not in ("", self._special)
        ends = re.escape(quote) if quote else f"[,{re.escape(self._end)}]"
        pattern = re.compile(rf"\\|{ends}" if is_escaped else ends)
        while True:
            found = pattern.search(text, self._seen)
            if found is None:
                self._seen = max(self._seen, len(text) - max(0, len(quote) - 1))
                raise UnfinishedError
            self._seen = found.start()
            if found[0] == "\\":
                if found.end() == len(text):
                    raise UnfinishedError
                self._seen += 2
                continue
            end = found.end() if quote else found.start()
            if self._is_end(text, end):
                break
            self._seen += 1
        value = text[self.at : found.start()]
        self.at = end
        if is_escaped:
            value = unescaped(value)
        if self._is_key:
            self._open[-1].key = value
            self._state = _State.ASSIGN
        else:
            self._put(value if quote else value.rstrip())

    def _is_end(self, text: str, at: int) -> bool:
        """Return whether a string, including its closing quote, ends at `at`.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        is_argument = len(self._open) == 1 and not self._is_key
        if not is_argument or (self._quote and (not self._ends or self._quote == self._special)):
            return True
        return _is_so(text[at : at + _MAX_AFTER], self._has_next)

    def _is_alone(self, text: str, at: int) -> bool:
        """Return whether an unquoted value that ends at `at` is complete, not the start of a text.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        return _is_so(
            text[at : at + _MAX_AFTER], lambda held: held.text[held.spaced(0)] in ("," + self._end)
        )

    def _has_next(self, held: Held) -> bool:
        """Return whether the held text begins with another argument, or the end of the call.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        at = held.spaced(0)
        if held.text[at] == ",":
            at = held.spaced(at + 1)
            key = _WORD.match(held.text, at)
            if key:
                return held.text[held.spaced(key.end())] == self._assign
        if held.text[at] != self._end:
            return False
        if not self._ends:
            return True
        at = held.spaced(at + 1)
        if held.text[at] == ",":
            at = held.spaced(at + 1)
        if held.word(at, self._ends):
            return True
        name = NAME.match(held.text, at)
        return name is not None and held.text[held.spaced(name.end())] == self._opening

    def _put(self, value: Any) -> None:  # noqa: ANN401 - JSON
        """Store a value in the innermost brackets."""
        inner = self._open[-1]
        if inner.values is None:
            inner.named[inner.key] = value
        else:
            inner.values.append(value)
        self._state = _State.NEXT

    def _close(self) -> None:
        """Close the innermost brackets."""
        closed = self._open.pop()
        self.at += 1
        if self._open:
            self._put(closed.named if closed.values is None else closed.values)

    def _pass(self, length: int, state: _State) -> None:
        """Advance by `length` characters and change to `state`."""
        self.at += length
        self._state = state

    def _demand(self, is_so: bool) -> None:
        if not is_so:
            raise ValueError(f"malformed arguments of a call at {self.at}")


def _is_so(text: str, look: Callable[[Held], bool]) -> bool:
    """Return the result of `look` on `text`; False if the whole lookahead does not suffice.

    Raises:
        UnfinishedError: More text is needed to tell.
    """
    try:
        return look(Held(text))
    except UnfinishedError:
        if len(text) < _MAX_AFTER:
            raise
        return False
