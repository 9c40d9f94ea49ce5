"""Separating reasoning from the answer where both are messages on channels, while they stream."""

import enum

from loramux_server.reasoning.channels import ChannelSyntax, OpenMessage
from loramux_server.reasoning.reader import Thought
from loramux_server.text.stop_strings import overlap
from loramux_server.tools.syntax import joined

_MAX_HEADER = 256
"""Most characters between the tokens around a channel."""
_BREAK = "\n\n"
"""Separator between the contents of several messages."""


class _State(enum.Enum):
    """The state of the reader: what is being read."""

    HEADER = enum.auto()
    """The header that may name the channel of a message."""
    THOUGHT = enum.auto()
    TEXT = enum.auto()


class ChannelReader:
    """Separates reasoning from answers in the messages of one completion, and removes markers.

    A message that is addressed to a tool, or names no channel, keeps its header as text.
    """

    def __init__(self, syntax: ChannelSyntax, open_message: OpenMessage) -> None:
        """Start a completion after a prompt that has begun `open_message`."""
        channels = syntax.channels
        self._thought_channel = syntax.thought
        self._begin, self._between = joined(channels.begin), joined(channels.between)
        self._start, self._end = channels.begin[0].text, channels.end.text
        self._before, self._after = channels.before.text, channels.after.text
        self._state = {
            OpenMessage.NOTHING: _State.HEADER,
            OpenMessage.THOUGHT: _State.THOUGHT,
            OpenMessage.ANSWER: _State.TEXT,
        }[open_message]
        self._held = ""
        """What may be part of a marker, and white space that may precede one."""
        self._is_begun = False
        """Whether any content of the current message has been released."""
        self._is_headed = False
        """Whether its header was removed."""
        self._has_thought = self._has_text = False

    def push(self, piece: str) -> Thought:
        """Add the next piece of text, and return what can be classified by now."""
        self._held += piece
        reasoning: list[str] = []
        text: list[str] = []
        is_known = True
        while is_known:
            if self._state is _State.HEADER:
                is_known = self._header()
            elif self._state is _State.THOUGHT:
                is_known = self._thought(reasoning)
            else:
                is_known = self._text(text)
        return Thought("".join(reasoning), "".join(text))

    def flush(self) -> Thought:
        """Return the text that was held back, without markers, at the end of the completion."""
        held, self._held = self._held, ""
        mark = held.lstrip()
        marks = [self._end, self._start]
        if self._state is _State.HEADER and "=" not in mark:
            marks.append(self._before)
        if mark.startswith(tuple(marks)):
            return Thought("", "")
        return Thought(held.rstrip(), "") if self._state is _State.THOUGHT else Thought("", held)

    def _header(self) -> bool:
        """Read the header; return False if more text is needed to classify the message."""
        held = self._held.lstrip()
        if held.startswith(self._begin):
            self._held = held[len(self._begin) :]
            return True
        if any(mark.startswith(held) for mark in (self._begin, self._before)):
            return False
        self._is_begun = self._is_headed = False
        self._state = _State.TEXT
        if not held.startswith(self._before):
            return True
        head, after, content = held[len(self._before) :].partition(self._after)
        length = len(head) if after else len(head) - overlap(self._after, head)
        if length > _MAX_HEADER or "\n" in head or self._begin in head:
            return True
        if not after:
            self._state = _State.HEADER
            return False
        if "=" not in head:  # "=" assigns a recipient
            self._is_headed = True
            self._held = content
            if head.split()[:1] == [self._thought_channel]:
                self._state = _State.THOUGHT
        return True

    def _thought(self, reasoning: list[str]) -> bool:
        """Append what is certainly reasoning; return whether the message ends."""
        content, ends = self._content()
        if not self._is_begun:
            content = content.lstrip()
        known = content.rstrip()
        if not ends:
            self._held = content[len(known) :] + self._held
        if known:
            gap = _BREAK if self._has_thought and not self._is_begun else ""
            reasoning.append(gap + known)
            self._is_begun = self._has_thought = True
        return ends

    def _text(self, text: list[str]) -> bool:
        """Append what is certainly text; return whether the message ends."""
        known, ends = self._content()
        if known:
            is_apart = self._has_text and self._is_headed and not self._is_begun
            text.append((_BREAK if is_apart else "") + known)
            self._is_begun = self._has_text = True
        return ends

    def _content(self) -> tuple[str, bool]:
        """Return the content received so far and whether the message ends; hold back the rest."""
        at = self._held.find(self._begin)
        if at >= 0:
            content = self._held[:at].removesuffix(self._end)
            self._held = self._held[at + len(self._begin) :]
            self._state = _State.HEADER
            return content, True
        keep = max(overlap(mark, self._held) for mark in (self._begin, self._between))
        at = len(self._held) - keep
        content, self._held = self._held[:at], self._held[at:]
        return content, False
