"""Parsing tool calls from a completion while it streams."""

import enum
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from loramux_server.chat.messages import Tool
from loramux_server.text.stop_strings import overlap
from loramux_server.tools.arguments import NAME, parse_object
from loramux_server.tools.call_head import CallHead, CallStart
from loramux_server.tools.code_reader import CodeReader
from loramux_server.tools.held import UnfinishedError
from loramux_server.tools.ids import new_id
from loramux_server.tools.json_end import JsonEnd
from loramux_server.tools.parameter_reader import ParameterReader
from loramux_server.tools.reader import Reader, ToolCall
from loramux_server.tools.separators import ends_of, separators_and_closings
from loramux_server.tools.syntax import COUNT, ToolSyntax
from loramux_server.tools.values import arguments_of, unquoted

_MAX_HELD = 1024
"""Most characters that are held back, not counting the arguments of a call."""
_ID = re.compile(r"[\w.:-]{1,128}")
"""Ids of the model that are passed on; others are replaced."""


class _State(enum.Enum):
    """The state of the reader: what is being read."""

    TEXT = enum.auto()
    """Text, up to the trigger."""
    CALL = enum.auto()
    """A trigger or separator, which a call may follow."""
    AFTER = enum.auto()
    """What follows a call: its closing, and perhaps a separator."""
    REST = enum.auto()
    """Text to the end."""


class CallReader(Reader):
    """Parses calls that are parts of the text of one completion."""

    def __init__(self, syntax: ToolSyntax, tools: Sequence[Tool], *, most: int | None) -> None:
        """Start a completion.

        Args:
            syntax: How calls are written.
            tools: The tools.
            most: Most calls to read; None for any number.
        """
        super().__init__(most=most)
        self._syntax = syntax
        self._tools = {tool.name: tool for tool in tools}
        self._trigger = syntax.trigger
        self._state = _State.TEXT if self._trigger else _State.CALL
        self._head = CallHead(syntax, self._tools.keys())
        self._counts = any(COUNT in part for part in (syntax.head, syntax.middle, syntax.tail))
        self._separators, self._closings = separators_and_closings(syntax)
        self._ends = ends_of(syntax)
        self._is_separated = False
        """Whether the held text follows a separator, not the trigger."""
        self._start = CallStart(0)
        """The head of the call that is being read."""
        self._end: JsonEnd | ParameterReader | CodeReader | None = None
        """The reader of its arguments; None before its head was recognized."""
        self._ids: set[str] = set()

    def _given_up(self) -> str | None:
        if self._end is not None or len(self._held.text) <= _MAX_HELD:
            return None
        self._state = self._no_call_state
        return self._held.taken(len(self._held.text))

    def _last_call(self) -> ToolCall | None:
        if not isinstance(self._end, CodeReader):
            return None
        self._end.end()
        try:
            return self._call()
        except UnfinishedError:
            return None

    @property
    def _no_call_state(self) -> _State:
        """The state after something turned out to be no call."""
        return _State.TEXT if self._trigger else _State.REST

    @property
    def _is_after_call(self) -> bool:
        return self._state is _State.AFTER

    def _step(self) -> ToolCall | str:
        if self._state is _State.TEXT:
            return self._before_call()
        if self._state is _State.CALL:
            return self._call() or self._no_call()
        if self._state is _State.AFTER:
            self._after_call()
            return ""
        return self._held.taken(len(self._held.text))

    def _before_call(self) -> str:
        """Return the text before the trigger, or before a part of it at the end."""
        end = self._held.text.find(self._trigger)
        if end >= 0:
            self._state = _State.CALL
            self._is_separated = False
        else:
            end = len(self._held.text) - overlap(self._trigger, self._held.text)
        end = max(len(self._held.text[:end].rstrip()), end - _MAX_HELD)
        if not end and self._state is _State.TEXT:
            raise UnfinishedError
        return self._held.taken(end)

    def _call(self) -> ToolCall | None:
        """Return the call at the start of the held text, and continue after it; None if it is none.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        if self._end is None:
            start = self._head.find(self._held, is_separated=self._is_separated)
            if start is None:
                return None
            self._start, self._end = start, self._end_from(start.at)
        try:
            end = self._end.find(self._held.text)
            if end is None:
                raise UnfinishedError
            value = self._value(end)
        except (ValueError, RecursionError):
            return None
        keys = self._syntax.keys
        if keys is None:
            return self._taken(self._start.name, value, self._start.id, end)
        inner = value if keys.outer is None else value.get(keys.outer)
        if not isinstance(inner, dict):
            return None
        made_id = None if self._counts else value.get("id")
        return self._taken(inner.get(keys.name), inner.get(keys.arguments), made_id, end)

    def _end_from(self, begin: int) -> JsonEnd | ParameterReader | CodeReader:
        """Return a reader that finds the end of arguments that begin at `begin`."""
        if self._syntax.parameters:
            return ParameterReader(self._syntax.parameters, self._ends, begin)
        if self._syntax.code:
            return CodeReader(self._syntax.code, self._ends, begin)
        return JsonEnd(begin)

    def _value(self, end: int) -> Any:  # noqa: ANN401 - JSON
        """Return the value that ends at `end`: the arguments of a call, or the object with them."""
        tool = self._tools.get(self._start.name)
        if isinstance(self._end, ParameterReader):
            assert self._syntax.parameters is not None
            is_python = self._syntax.parameters.is_python
            return arguments_of(self._end.found, tool, is_python=is_python)
        if not isinstance(self._end, CodeReader):
            return msgspec.json.decode(self._held.text[self._start.at : end])
        code = self._syntax.code
        return unquoted(self._end.found, tool) if code and code.quotes_all else self._end.found

    def _taken(self, name: Any, arguments: Any, made_id: Any, end: int) -> ToolCall | None:  # noqa: ANN401
        """Return a call if these are valid parts of one, and continue at `end`."""
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
        self._state = _State.AFTER
        call_id = made_id if isinstance(made_id, str) and _ID.fullmatch(made_id) else new_id()
        if call_id in self._ids:
            call_id = new_id()
        self._ids.add(call_id)
        return ToolCall(call_id, name, json.dumps(arguments, ensure_ascii=False))

    def _no_call(self) -> str:
        """Return the text that turned out to be no call, and continue after it."""
        # Arguments that were read are not searched for calls.
        end = 0 if self._end is None or isinstance(self._end, JsonEnd) else self._end.at
        self._end = None
        self._state = self._no_call_state
        if self._trigger and not self._is_separated:
            end = max(end, self._held.text.find(self._trigger) + len(self._trigger))
        return self._held.taken(end)

    def _after_call(self) -> None:
        """Skip what separates and closes calls, and set the state for what follows.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        begin = self._held.spaced(0)
        closed = None
        for words in ([], *self._separators, *self._closings):
            end = self._held.after_words(words, begin)
            if end is None:
                continue
            is_separated = words in self._separators and self._head.may_be(self._held, end)
            if is_separated or (self._trigger and self._held.word(end, [self._trigger])):
                self._held.taken(end)
                self._is_separated = is_separated
                self._state = _State.CALL
                return
            if words in self._closings and closed is None:
                closed = end
        self._held.taken(closed or 0)
        self._state = self._no_call_state
