"""Parsing what precedes the arguments of a call: its id and name."""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from loramux_server.chat.messages import Piece
from loramux_server.tools.arguments import NAME
from loramux_server.tools.held import Held, UnfinishedError
from loramux_server.tools.ids import MAX_NAMED, name_in, named_id
from loramux_server.tools.syntax import COUNT, ID, ToolSyntax, joined, words_of

_MAX_LEAD = 8
"""Most words between the trigger and the first call."""
CALL_ID = re.compile(r"[\w-]{1,64}")
_COUNT = re.compile(r"[0-9]{1,9}")


class CallStart(NamedTuple):
    """A call whose arguments follow."""

    at: int
    """Offset of its arguments, or of the object that contains them."""
    name: str = ""
    """Empty if the object contains it."""
    id: str | None = None
    """The id that the model wrote; None if it writes none before the arguments."""


class CallHead:
    """Parses what precedes the arguments of calls."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str]) -> None:
        """Prepare for calls in `syntax`, of tools with these names."""
        self._names = names
        # Without one, calls are recognized by their names, and only at the start of the text.
        self._trigger = syntax.trigger
        self._keys = syntax.keys
        self._code = syntax.code
        self._lead = {*words_of(syntax.opening), *("[" if self._keys else "")}
        self._parts = [*_parts(syntax.head), NAME, *_parts(syntax.middle)]
        """Fixed texts, and patterns of the variable parts."""
        texts = [part for part in self._parts if isinstance(part, str)]
        self._after_id = texts[-1] if syntax.is_named_by_id else None
        """The text after an id that contains the name; None if ids do not."""
        self._begin = "{"
        """The text with which arguments begin; empty if any."""
        if syntax.arguments is not None:
            self._begin = self._code.begin.strip() if self._code else ""

    def find(self, held: Held, *, is_separated: bool) -> CallStart | None:
        """Return the call at the start of the held text; None if there is none.

        Args:
            held: The text received so far.
            is_separated: Whether it follows a separator of calls, not the trigger.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        at = held.spaced(0)
        if not is_separated and self._trigger:
            at = held.spaced(at + len(self._trigger))
        begin = at
        for _ in range(_MAX_LEAD):
            if not (word := held.word(at, self._lead)):
                break
            at = held.spaced(at + len(word))
        if self._keys is not None:
            return CallStart(at) if held.text[at] == "{" else None
        if self._code and not self._trigger and not is_separated and at == begin:
            return None  # ordinary text could begin with a name
        if self._after_id is None:
            start = self._named(held, at)
        else:
            start = self._named_by_id(held, at, self._after_id)
        if start is None or not self._is_known(start.name):
            return None
        return start if held.text.startswith(self._begin, start.at) else None

    def may_be(self, held: Held, at: int) -> bool:
        """Return whether a call may begin at `at`, after a separator.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        if self._keys is not None:
            return held.text[at] == "{"
        if self._code is None:
            return True
        name = NAME.match(held.text, at)
        after = held.spaced(name.end()) if name else at
        return self._is_known(name[0] if name else "") and held.text.startswith(self._begin, after)

    def _is_known(self, name: str) -> bool:
        """Return whether a call may have this name: any with a trigger, else that of a tool."""
        return name != "" and bool(self._trigger or name in self._names)

    def _named(self, held: Held, at: int) -> CallStart | None:
        """Return the call whose head, name and middle begin at `at`; None if there is none.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        found: dict[re.Pattern[str], str] = {}
        for part in self._parts:
            if isinstance(part, str):
                after = held.after_word(part, at)
            else:
                match = part.match(held.text, at)
                after = held.spaced(match.end()) if match else None
                found[part] = match[0] if match else ""
            if after is None:
                return None
            at = after
        return CallStart(at, found[NAME], found.get(CALL_ID))

    def _named_by_id(self, held: Held, at: int, after: str) -> CallStart | None:
        """Return the call that begins with an id that contains its name, followed by `after`.

        Raises:
            UnfinishedError: More text is needed to tell.
        """
        most = at + MAX_NAMED
        end = held.text.find(after, at, most + len(after))
        if end < 0:
            if len(held.text) < most + len(after):
                raise UnfinishedError
            return None
        found = name_in(held.text[at:end].strip(), self._names)
        return (
            CallStart(held.spaced(end + len(after)), found[0], named_id(*found)) if found else None
        )


def _parts(pieces: Sequence[Piece]) -> Iterator[str | re.Pattern[str]]:
    """Yield the texts of `pieces`, stripped, and patterns for ids and counters."""
    for is_text, group in groupby(pieces, lambda piece: piece not in (ID, COUNT)):
        if not is_text:
            yield from (CALL_ID if piece == ID else _COUNT for piece in group)
        elif text := joined(group).strip():
            yield text
