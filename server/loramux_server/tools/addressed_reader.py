"""Messages on channels -> text and calls of tools, as they arrive."""

import enum
import json
import re

from loramux_server.stop_strings import overlap
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.arguments import NAME, parse_object
from loramux_server.tools.held import Held, UnfinishedError
from loramux_server.tools.ids import new_id
from loramux_server.tools.json_end import JsonEnd
from loramux_server.tools.reader import Read, ToolCall
from loramux_server.tools.syntax import joined

_MAX_HELD = 1024
"""Characters that wait for what follows, but for the arguments of a call."""
_MAX_HEADER = 256
"""Characters from what may begin a call to what ends its header."""


class _Now(enum.Enum):
    """What is being read."""

    TEXT = enum.auto()
    """Text, up to what may begin a call."""
    HEADER = enum.auto()
    ARGUMENTS = enum.auto()
    AFTER = enum.auto()
    """What follows a call: what ends the message."""


class AddressedReader:
    """Takes calls out of one completion.

    What does not turn out to be a call is text, as it was written. White space between text and
    calls is left out, and so is what begins and ends a call.
    """

    def __init__(self, syntax: AddressedSyntax, *, most: int | None) -> None:
        """Read at most `most` calls, or any number."""
        channels = syntax.channels
        recipient = syntax.recipient.strip()
        self._triggers = (joined(channels.begin), channels.before.text, recipient)
        """What may begin a call."""
        self._after = channels.after.text
        self._ends = (syntax.end.text, channels.end.text)
        self._header = _header(syntax, recipient)
        self._most = most
        self._now = _Now.TEXT
        self._held = Held()
        """Text of which it is not known yet what it is."""
        self._trigger = ""
        """Which one was found."""
        self._name = ""
        self._begin = 0
        """Where in what is held its arguments begin, or what stands before them."""
        self._end: JsonEnd | None = None
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
                if self._now is _Now.TEXT:
                    text.append(self._before_call())
                elif self._now is _Now.HEADER:
                    text.append(self._called())
                elif self._now is _Now.ARGUMENTS:
                    self._arguments(text, calls)
                else:
                    self._after_call()
            except UnfinishedError:
                break
        return Read("".join(text), calls)

    def flush(self) -> str:
        """Return the text that was held back, at the end of the completion."""
        held = self._held.taken(len(self._held.text))
        return "" if self._now is _Now.AFTER else held

    def _before_call(self) -> str:
        """Return the text before what may begin a call, or may yet become that.

        Raises:
            UnfinishedError: All that is held is such.
        """
        text = self._held.text
        found = [(at, trigger) for trigger in self._triggers if (at := text.find(trigger)) >= 0]
        if found:
            end, self._trigger = min(found)
            self._now = _Now.HEADER
        else:
            end = len(text) - max(overlap(trigger, text) for trigger in self._triggers)
        end = max(len(text[:end].rstrip()), end - _MAX_HELD)
        if not end and not found:
            raise UnfinishedError
        return self._held.taken(end)

    def _called(self) -> str:
        """Find out what is called, or return the text that was taken for what begins a call.

        Raises:
            UnfinishedError: That is not known yet.
        """
        text = self._held.text
        begin = text.index(self._trigger)
        most = begin + _MAX_HEADER
        end = text.find(self._after, begin, most + len(self._after))
        if "\n" in text[begin : end if end >= 0 else most]:
            return self._no_call(begin + len(self._trigger))
        if end < 0:
            if len(text) < most + len(self._after):
                raise UnfinishedError
            return self._no_call(begin + len(self._trigger))
        header = self._header.fullmatch(text, begin, end)
        if header is None:
            return self._no_call(begin + len(self._trigger))
        self._name, self._begin = header["name"], end + len(self._after)
        self._now = _Now.ARGUMENTS
        return ""

    def _arguments(self, text: list[str], calls: list[ToolCall]) -> None:
        """Find out what the arguments are.

        Raises:
            UnfinishedError: They go on.
        """
        if self._end is None:
            begin = self._held.spaced(self._begin)
            self._end = JsonEnd(begin)
            self._begin = begin
        try:
            if self._held.text[self._begin] != "{":
                raise ValueError("no object")
            end = self._end.find(self._held.text)
            if end is None:
                raise UnfinishedError
            arguments = parse_object(self._held.text[self._begin : end])
        except ValueError:
            text.append(self._no_call(self._begin))
            return
        self._held.taken(end)
        self._end = None
        self._now = _Now.AFTER
        self.num_calls += 1
        calls.append(ToolCall(new_id(), self._name, json.dumps(arguments, ensure_ascii=False)))

    def _no_call(self, end: int) -> str:
        """Return the text up to `end`, in which no call begins, and go on after it."""
        self._end = None
        self._now = _Now.TEXT
        return self._held.taken(end)

    def _after_call(self) -> None:
        """Leave out what ends the message.

        Raises:
            UnfinishedError: More of it may come.
        """
        at = self._held.spaced(0)
        end = self._held.word(at, self._ends)
        self._held.taken(at + len(end or ""))
        self._now = _Now.TEXT if end is None else _Now.AFTER


def _header(syntax: AddressedSyntax, recipient: str) -> re.Pattern[str]:
    """Return what the header of a call is, up to the token after it."""
    begin, before = (
        re.escape(text) for text in (joined(syntax.channels.begin), syntax.channels.before.text)
    )
    mark = re.escape(syntax.kind_mark.text) if syntax.kind_mark else ""
    channel = rf"(?:{before}\s*\w*)?"
    return re.compile(
        rf"(?:{begin})?{channel}\s*{re.escape(recipient)}(?P<name>{NAME.pattern})(?![\w.-])"
        rf"\s*{channel}\s*(?:{mark})?\s*\w*\s*"
    )
