"""Parsing tool calls that are messages on channels, while they stream."""

import enum
import json
import re

from loramux_server.text.stop_strings import overlap
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.arguments import NAME, parse_object
from loramux_server.tools.held import UnfinishedError
from loramux_server.tools.ids import new_id
from loramux_server.tools.json_end import JsonEnd
from loramux_server.tools.reader import Reader, ToolCall
from loramux_server.tools.syntax import joined

_MAX_HELD = 1024
"""Most white space before a possible call that is held back, in characters."""
_MAX_HEADER = 256
"""Most characters from a trigger to the end of the header."""


class _State(enum.Enum):
    """The state of the reader: what is being read."""

    TEXT = enum.auto()
    """Text, up to a trigger."""
    HEADER = enum.auto()
    ARGUMENTS = enum.auto()
    AFTER = enum.auto()
    """What follows the arguments: the end of the message."""


class AddressedReader(Reader):
    """Parses calls in one completion that are messages to a tool."""

    def __init__(self, syntax: AddressedSyntax, *, most: int | None) -> None:
        """Read at most `most` calls; None for any number."""
        super().__init__(most=most)
        channels = syntax.channels
        recipient = syntax.recipient.strip()
        self._triggers = (joined(channels.begin), channels.before.text, recipient)
        """Texts with which a call may begin."""
        self._after = channels.after.text
        self._ends = (syntax.end.text, channels.end.text)
        self._header = _header(syntax, recipient)
        self._state = _State.TEXT
        self._trigger = ""
        """The one that was found."""
        self._name = ""
        self._begin = 0
        """Offset in the held text of what follows the trigger, or of the arguments; no other call
        begins before it."""
        self._end: JsonEnd | None = None

    def _step(self) -> ToolCall | str:
        if self._state is _State.TEXT:
            return self._before_call()
        if self._state is _State.HEADER:
            return self._called()
        if self._state is _State.ARGUMENTS:
            return self._arguments()
        self._after_call()
        return ""

    @property
    def _is_after_call(self) -> bool:
        return self._state is _State.AFTER

    def _before_call(self) -> str:
        """Return the text before a trigger, or before a part of one at the end.

        Raises:
            UnfinishedError: There is none yet.
        """
        text = self._held.text
        found = [(at, trigger) for trigger in self._triggers if (at := text.find(trigger)) >= 0]
        if found:
            end, self._trigger = min(found)
            self._state = _State.HEADER
        else:
            end = len(text) - max(overlap(trigger, text) for trigger in self._triggers)
        end = max(len(text[:end].rstrip()), end - _MAX_HELD)
        if not end and not found:
            raise UnfinishedError
        return self._held.taken(end)

    def _called(self) -> str:
        """Read the header of a call; if it is none, return the text up to the end of the trigger.

        Raises:
            UnfinishedError: The header is incomplete.
        """
        text = self._held.text
        begin = text.index(self._trigger)
        self._begin = begin + len(self._trigger)
        most = begin + _MAX_HEADER
        end = text.find(self._after, begin, most + len(self._after))
        if "\n" in text[begin : end if end >= 0 else most]:
            return self._no_call()
        if end < 0:
            if len(text) < most + len(self._after):
                raise UnfinishedError
            return self._no_call()
        header = self._header.fullmatch(text, begin, end)
        if header is None:
            return self._no_call()
        self._name, self._begin = header["name"], end + len(self._after)
        self._state = _State.ARGUMENTS
        return ""

    def _arguments(self) -> ToolCall | str:
        """Return the call with these arguments; the text that was read if they are invalid.

        Raises:
            UnfinishedError: They are incomplete.
        """
        if self._end is None:
            begin = self._held.spaced(self._begin)
            self._end = JsonEnd(begin)
            self._begin = begin
        try:
            if self._held.text[self._begin] != "{":
                raise ValueError("not a JSON object")
            end = self._end.find(self._held.text)
            if end is None:
                raise UnfinishedError
            arguments = parse_object(self._held.text[self._begin : end])
        except ValueError:
            return self._no_call()
        self._held.taken(end)
        self._end = None
        self._state = _State.AFTER
        return ToolCall(new_id(), self._name, json.dumps(arguments, ensure_ascii=False))

    def _no_call(self) -> str:
        """Return the text that turned out to be no call, and continue after it."""
        self._end = None
        self._state = _State.TEXT
        return self._held.taken(self._begin)

    def _after_call(self) -> None:
        """Skip the end of the message.

        Raises:
            UnfinishedError: It may be incomplete.
        """
        at = self._held.spaced(0)
        end = self._held.word(at, self._ends)
        self._held.taken(at + len(end or ""))
        self._state = _State.TEXT if end is None else _State.AFTER


def _header(syntax: AddressedSyntax, recipient: str) -> re.Pattern[str]:
    """Return a pattern for the header of a call, up to the token after it."""
    begin, before = (
        re.escape(text) for text in (joined(syntax.channels.begin), syntax.channels.before.text)
    )
    mark = re.escape(syntax.kind_mark.text) if syntax.kind_mark else ""
    channel = rf"(?:{before}\s*\w*)?"
    return re.compile(
        rf"(?:{begin})?{channel}\s*{re.escape(recipient)}(?P<name>{NAME.pattern})(?![\w.-])"
        rf"\s*{channel}\s*(?:{mark})?\s*\w*\s*"
    )
