"""What a model writes -> text and calls of tools, as it arrives."""

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from loramux_server.chat.messages import Piece, Tool
from loramux_server.stop_strings import overlap
from loramux_server.tools.arguments import NAME, parse_object
from loramux_server.tools.held import Held, UnfinishedError
from loramux_server.tools.ids import new_id
from loramux_server.tools.json_end import JsonEnd
from loramux_server.tools.parameter_reader import ParameterReader
from loramux_server.tools.separators import beside
from loramux_server.tools.syntax import ID, ToolSyntax, joined, marks_of, words_of
from loramux_server.tools.values import arguments_of

_MAX_HELD = 1024
"""Characters that wait for what follows, but for the arguments of a call."""
_MAX_LEAD = 8
"""Words between what begins calls and the first one."""
_ID = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for."""

    id: str
    name: str
    arguments: str
    """An object of JSON, as text."""


class Read(NamedTuple):
    """What came of a piece."""

    text: str
    calls: Sequence[ToolCall]


class _Now(enum.Enum):
    """What is being read."""

    TEXT = enum.auto()
    """Text, up to what begins a call."""
    CALL = enum.auto()
    """What begins or separates calls, and may be followed by one."""
    AFTER = enum.auto()
    """What follows a call: what closes it, and perhaps separates it from the next one."""
    REST = enum.auto()
    """Text to the end."""


class CallReader:
    """Takes calls out of one completion.

    What does not turn out to be a call is text, as it was written. White space between text and
    calls is left out, and so is what separates and closes calls.
    """

    def __init__(self, syntax: ToolSyntax, tools: Sequence[Tool], *, most: int | None) -> None:
        """Read calls.

        Args:
            syntax: How they are written.
            tools: What may be called.
            most: How many calls there may be; None for any number.
        """
        self._keys = syntax.keys
        self._parameters = syntax.parameters
        self._tools = {tool.name: tool for tool in tools}
        self._most = most
        # Where there is none, calls are told by their names, and stand at the begin of a text.
        self._trigger = syntax.trigger
        self._now = _Now.TEXT if self._trigger else _Now.CALL
        before_id, *after_id = _at_id(syntax.middle)
        self._middle = joined(before_id).strip()
        self._after_id = joined(after_id[0]).strip() if after_id else None
        """What follows an id that the model makes up; None where it makes up none."""
        self._lead = {*words_of(syntax.opening), *("[" if self._keys else "")}
        self._separators, self._closings = beside(syntax)
        self._ends = marks_of(syntax.closing)
        self._held = Held()
        """Text of which it is not known yet what it is."""
        self._is_separated = False
        """Whether what is held follows what separates calls, and not what begins them."""
        self._head: tuple[str, str] = ("", "")
        """The name and the id before the arguments of a call."""
        self._begin = 0
        """Where in what is held they begin, or the object that has them."""
        self._end: JsonEnd | ParameterReader | None = None
        self._ids: set[str] = set()
        self.num_calls = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many calls as may be."""
        return self._most is not None and self.num_calls >= self._most

    def push(self, piece: str) -> Read:
        """Take what comes next, and return what is known by now."""
        self._held.text += piece
        text: list[str] = []
        calls: list[ToolCall] = []
        while self._held.text and not self.is_full:
            try:
                self._step(text, calls)
            except UnfinishedError:
                if self._end is not None or len(self._held.text) <= _MAX_HELD:
                    break
                text.append(self._held.taken(len(self._held.text)))
                self._now = self._no_call_now
        return Read("".join(text), calls)

    @property
    def _no_call_now(self) -> _Now:
        """What is read where there is no call."""
        return _Now.TEXT if self._trigger else _Now.REST

    def _step(self, text: list[str], calls: list[ToolCall]) -> None:
        """Find out what the begin of what is held is.

        Raises:
            UnfinishedError: That is not known yet.
        """
        if self._now is _Now.TEXT:
            text.append(self._before_call())
        elif self._now is _Now.CALL:
            if found := self._call():
                calls.append(found)
            else:
                text.append(self._no_call())
        elif self._now is _Now.AFTER:
            self._after_call()
        else:
            text.append(self._held.taken(len(self._held.text)))

    def flush(self) -> str:
        """Return the text that was held back, at the end of the completion."""
        held = self._held.taken(len(self._held.text))
        return "" if self._now is _Now.AFTER else held

    def _before_call(self) -> str:
        """Return the text before what begins a call, or may yet become that."""
        end = self._held.text.find(self._trigger)
        if end >= 0:
            self._now = _Now.CALL
            self._is_separated = False
        else:
            end = len(self._held.text) - overlap(self._trigger, self._held.text)
        end = max(len(self._held.text[:end].rstrip()), end - _MAX_HELD)
        if not end and self._now is _Now.TEXT:
            raise UnfinishedError
        return self._held.taken(end)

    def _call(self) -> ToolCall | None:
        """Return the call with which begins what is held, and go on after it; None if it is none.

        Raises:
            UnfinishedError: That is not known yet.
        """
        if self._end is None:
            begin = self._arguments_begin()
            if begin is None:
                return None
            self._begin, self._end = begin, JsonEnd(begin)
            if self._parameters:
                self._end = ParameterReader(self._parameters, self._ends, begin)
        try:
            end = self._end.find(self._held.text)
            if end is None:
                raise UnfinishedError
            value = self._value(end)
        except (ValueError, RecursionError):
            return None
        if self._keys is None:
            name, made_id = self._head
            return self._taken(name, value, made_id, end)
        inner = value if self._keys.outer is None else value.get(self._keys.outer)
        if not isinstance(inner, dict):
            return None
        called = inner.get(self._keys.name), inner.get(self._keys.arguments)
        return self._taken(*called, value.get("id"), end)

    def _value(self, end: int) -> Any:  # noqa: ANN401 - JSON
        """Return what is written up to `end`: the arguments of a call, or the object with them."""
        if self._parameters and isinstance(self._end, ParameterReader):
            tool = self._tools.get(self._head[0])
            return arguments_of(self._end.found, tool, is_python=self._parameters.is_python)
        return msgspec.json.decode(self._held.text[self._begin : end])

    def _arguments_begin(self) -> int | None:
        """Return where the arguments of a call begin, or the object with them; None if it is none.

        Raises:
            UnfinishedError: That is not known yet.
        """
        at = self._held.spaced(0)
        if not self._is_separated and self._trigger:
            at = self._held.spaced(at + len(self._trigger))
        for _ in range(_MAX_LEAD):
            if not (word := self._held.word(at, self._lead)):
                break
            at = self._held.spaced(at + len(word))
        if self._keys is not None:
            return at if self._held.text[at] == "{" else None
        name = NAME.match(self._held.text, at)
        if name is None:
            return None
        found: int | None = self._held.spaced(name.end())
        if self._middle:
            found = self._held.after_word(self._middle, name.end())
        if found is None:
            return None
        self._head = (name[0], "")
        if self._after_id is not None:
            made = _ID.match(self._held.text, found)
            found = self._held.after_word(self._after_id, made.end()) if made else None
            if made is None or found is None:
                return None
            self._head = (name[0], made[0])
        return found if self._parameters or self._held.text[found] == "{" else None

    def _taken(self, name: Any, arguments: Any, made_id: Any, end: int) -> ToolCall | None:  # noqa: ANN401
        """Return a call, if it is one, and hold what follows it from `end` on."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return None
        if not self._trigger and name not in self._tools:
            return None
        try:
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            arguments = parse_object(text)
        except ValueError:
            return None
        self._held.taken(end)
        self._end = None
        self._now = _Now.AFTER
        self.num_calls += 1
        call_id = made_id if isinstance(made_id, str) and _ID.fullmatch(made_id) else new_id()
        if call_id in self._ids:
            call_id = new_id()
        self._ids.add(call_id)
        return ToolCall(call_id, name, json.dumps(arguments, ensure_ascii=False))

    def _no_call(self) -> str:
        """Return the text that was taken for what begins a call, and go on after it."""
        # What was a parameter is read once, whatever it holds.
        end = self._end.at if isinstance(self._end, ParameterReader) else 0
        self._end = None
        self._now = self._no_call_now
        if self._trigger and not self._is_separated:
            end = max(end, self._held.text.find(self._trigger) + len(self._trigger))
        return self._held.taken(end)

    def _after_call(self) -> None:
        """Find out what follows a call; what separates and closes calls is left out.

        Raises:
            UnfinishedError: That is not known yet.
        """
        begin = self._held.spaced(0)
        closed = None
        for words in ([], *self._separators, *self._closings):
            end = self._held.after_words(words, begin)
            if end is None:
                continue
            is_separated = words in self._separators and (
                self._keys is None or self._held.text[end] == "{"
            )
            if is_separated or (self._trigger and self._held.word(end, [self._trigger])):
                self._held.taken(end)
                self._is_separated = is_separated
                self._now = _Now.CALL
                return
            if words in self._closings and closed is None:
                closed = end
        self._held.taken(closed or 0)
        self._now = self._no_call_now


def _at_id(pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
    """Return what stands before an id, and if there is one what stands after it."""
    if ID not in pieces:
        return [pieces]
    at = list(pieces).index(ID)
    return [pieces[:at], pieces[at + 1 :]]
