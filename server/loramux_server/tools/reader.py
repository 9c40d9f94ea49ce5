"""What a model writes -> text and calls of tools, as it arrives."""

import contextlib
import enum
import json
import re
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from loramux_server.stop_strings import overlap
from loramux_server.tools.json_end import JsonEnd
from loramux_server.tools.syntax import ToolSyntax, joined

_NAME = re.compile(r"[\w.-]{1,64}")
_NO_SPACE = re.compile(r"\S")
_MAX_SPACE = 1024
"""Characters of white space that wait for what follows."""
_ID_CHARS = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Templates of Mistral take ids of just this form, others any."""


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


class _UnfinishedError(Exception):
    """What is held may be something, once more has come."""


class _Now(enum.Enum):
    """What is being read."""

    TEXT = enum.auto()
    """Text, up to what begins a call."""
    CALL = enum.auto()
    """What may be a call, and what begins it."""
    AFTER = enum.auto()
    """What follows a call: what closes it, and perhaps the next one."""
    REST = enum.auto()
    """Text to the end."""


class CallReader:
    """Takes calls out of one completion.

    What does not turn out to be a call is text, as it was written. White space between text and
    calls is left out, and so is what separates and closes calls.
    """

    def __init__(self, syntax: ToolSyntax, names: Collection[str], *, most: int | None) -> None:
        """Read calls.

        Args:
            syntax: How they are written.
            names: The tools that there are.
            most: How many calls there may be; None for any number.
        """
        self._keys = syntax.keys
        self._middle = joined(syntax.middle).strip()
        self._names = frozenset(names)
        self._most = most
        # Where there is none, calls are told by their names.
        self._trigger = syntax.trigger
        self._now = _Now.TEXT if self._trigger else _Now.CALL
        parts = (syntax.opening, syntax.separator or (), syntax.closing)
        texts = [joined(part) for part in parts]
        if self._trigger:
            texts = [self._trigger, *(text.replace(self._trigger, " ") for text in texts)]
        words = {word for text in texts for word in text.split()}
        words |= {piece.text for part in parts for piece in part if piece.is_token}
        words |= {*"[],;"}
        self._words = sorted(words, key=len, reverse=True)
        self._held = ""
        """Text of which it is not known yet what it is."""
        self._end: JsonEnd | None = None
        self.num_calls = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many calls as may be."""
        return self._most is not None and self.num_calls >= self._most

    def push(self, piece: str) -> Read:
        """Take what comes next, and return what is known by now."""
        self._held += piece
        text: list[str] = []
        calls: list[ToolCall] = []
        with contextlib.suppress(_UnfinishedError):
            while self._held and not self.is_full:
                if self._now is _Now.TEXT:
                    text.append(self._before_call())
                elif self._now is _Now.CALL:
                    found = self._call()
                    if found:
                        calls.append(found)
                    else:
                        text.append(self._no_call())
                elif self._now is _Now.AFTER:
                    self._after_call()
                else:
                    text.append(self._held)
                    self._held = ""
        return Read("".join(text), calls)

    def flush(self) -> str:
        """Return the text that was held back, at the end of the completion."""
        begin = 0
        try:
            if self._now is _Now.AFTER:
                begin = len(self._held) if self.is_full else self._skipped(0)
        except _UnfinishedError:
            begin = len(self._held)
        held, self._held = self._held[begin:], ""
        return held

    def _before_call(self) -> str:
        """Return the text before what begins a call, or may yet become that."""
        end = self._held.find(self._trigger)
        if end >= 0:
            self._now = _Now.CALL
        else:
            end = len(self._held) - overlap(self._trigger, self._held)
        end = max(len(self._held[:end].rstrip()), end - _MAX_SPACE)
        if not end and self._now is _Now.TEXT:
            raise _UnfinishedError
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _call(self) -> ToolCall | None:
        """Return the call with which begins what is held, and go on after it; None if it is none.

        Raises:
            _UnfinishedError: That is not known yet.
        """
        at = self._skipped(self._begun())
        if self._keys is None:
            name = _NAME.match(self._held, at)
            if name is None:
                return None
            arguments = self._after_middle(name.end())
            found = None if arguments is None else self._object(arguments)
            return self._taken(name[0], *found) if found else None
        found = self._object(at)
        if found is None:
            return None
        value, end = found
        if self._keys.outer is not None:
            value = value.get(self._keys.outer)
        if not isinstance(value, dict):
            return None
        return self._taken(value.get(self._keys.name), value.get(self._keys.arguments), end)

    def _after_middle(self, at: int) -> int | None:
        """Return where what follows a name, which ends at `at`, ends; None if that is not there."""
        at = self._spaced(at)
        if not self._held.startswith(self._middle, at):
            if self._middle.startswith(self._held[at : at + len(self._middle)]):
                raise _UnfinishedError
            return None
        at = self._spaced(at + len(self._middle))
        if at == len(self._held):
            raise _UnfinishedError
        return at

    def _object(self, begin: int) -> tuple[Any, int] | None:
        """Return the object that begins at `begin`, and where it ends; None if it is none.

        Raises:
            _UnfinishedError: It goes on.
        """
        if not self._held.startswith("{", begin):
            return None
        if self._end is None:
            self._end = JsonEnd(begin)
        try:
            end = self._end.find(self._held)
            if end is None:
                raise _UnfinishedError
            return msgspec.json.decode(self._held[begin:end]), end
        except (ValueError, RecursionError):
            return None

    def _taken(self, name: object, arguments: object, end: int) -> ToolCall | None:
        """Return a call, if it is one, and hold what follows it from `end` on."""
        if isinstance(arguments, str):  # an object, as text
            try:
                arguments = msgspec.json.decode(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        if not self._trigger and name not in self._names:
            return None
        self._held = self._held[end:]
        self._end = None
        self._now = _Now.AFTER
        self.num_calls += 1
        return ToolCall(_new_id(), name, json.dumps(arguments, ensure_ascii=False))

    def _no_call(self) -> str:
        """Return the text that was taken for what begins a call, and go on after it."""
        self._end = None
        if not self._trigger:
            self._now = _Now.REST
            return ""
        self._now = _Now.TEXT
        begun = self._begun()
        text, self._held = self._held[:begun], self._held[begun:]
        return text

    def _begun(self) -> int:
        """Return where what begins a call, and white space before it, ends in what is held."""
        at = self._spaced(0)
        return at + len(self._trigger) if self._held.startswith(self._trigger, at) else 0

    def _after_call(self) -> None:
        """Leave out what separates and closes calls, and find out what follows.

        Raises:
            _UnfinishedError: That is not known yet.
        """
        at = self._skipped(0, self._trigger)
        self._held = self._held[at:]
        if self._held.startswith(self._trigger or "{") or (self._keys and self._held[0] == "{"):
            self._now = _Now.CALL
        else:
            self._now = _Now.TEXT if self._trigger else _Now.REST

    def _skipped(self, at: int, but: str = "") -> int:
        """Return where from `at` on something else comes than words beside calls.

        Args:
            at: From where on.
            but: A word that is something else.

        Raises:
            _UnfinishedError: There may be no such place yet.
        """
        while (at := self._spaced(at)) < len(self._held):
            if but and but.startswith(self._held[at : at + len(but)]):
                if len(self._held) - at < len(but):
                    raise _UnfinishedError
                return at
            word = next((word for word in self._words if self._held.startswith(word, at)), None)
            if word is None:
                begun = self._held[at : at + len(self._words[0])]
                if any(word.startswith(begun) for word in self._words):
                    raise _UnfinishedError
                return at
            at += len(word)
        raise _UnfinishedError

    def _spaced(self, at: int) -> int:
        """Return where after white space from `at` on the text goes on."""
        found = _NO_SPACE.search(self._held, at)
        return found.start() if found else len(self._held)


def _new_id() -> str:
    return "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))
