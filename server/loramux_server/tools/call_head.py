"""What is written of a call before its arguments."""

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
"""Words between what begins calls and the first one."""
CALL_ID = re.compile(r"[\w-]{1,64}")
_COUNT = re.compile(r"[0-9]{1,9}")


class Begun(NamedTuple):
    """A call that has begun."""

    at: int
    """Where its arguments begin, or the object that has them."""
    name: str = ""
    """Empty where the object has it."""
    id: str | None = None
    """What the model made up; None where it makes up none before the arguments."""


class CallHead:
    """Looks for what stands before the arguments of calls."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str]) -> None:
        """Look for calls that are written so, of tools with these names."""
        self._names = names
        # Where there is none, calls are told by their names, and stand at the begin of a text.
        self._trigger = syntax.trigger
        self._keys = syntax.keys
        self._code = syntax.code
        self._lead = {*words_of(syntax.opening), *("[" if self._keys else "")}
        self._parts = [*_parts(syntax.head), NAME, *_parts(syntax.middle)]
        """Texts, and expressions of what may be different."""
        texts = [part for part in self._parts if isinstance(part, str)]
        self._after_id = texts[-1] if syntax.is_named_by_id else None
        """What stands after an id that has a name; None where no id has."""
        self._begin = "{"
        """What arguments begin with; empty where they need not."""
        if syntax.arguments is not None:
            self._begin = self._code.begin.strip() if self._code else ""

    def find(self, held: Held, *, is_separated: bool) -> Begun | None:
        """Return the call with which begins what is held; None if there is none.

        Args:
            held: What has come.
            is_separated: Whether it follows what separates calls, and not what begins them.

        Raises:
            UnfinishedError: That is not known yet.
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
            return Begun(at) if held.text[at] == "{" else None
        if self._code and not self._trigger and not is_separated and at == begin:
            return None  # any text could begin with a name
        if self._after_id is None:
            begun = self._named(held, at)
        else:
            begun = self._named_by_id(held, at, self._after_id)
        if begun is None or not self._is_known(begun.name):
            return None
        return begun if held.text.startswith(self._begin, begun.at) else None

    def may_be(self, held: Held, at: int) -> bool:
        """Return whether a call that is separated from another one may begin at `at`.

        Raises:
            UnfinishedError: That is not known yet.
        """
        if self._keys is not None:
            return held.text[at] == "{"
        if self._code is None:
            return True
        name = NAME.match(held.text, at)
        after = held.spaced(name.end()) if name else at
        return self._is_known(name[0] if name else "") and held.text.startswith(self._begin, after)

    def _is_known(self, name: str) -> bool:
        """Return whether a call may have this name."""
        return name != "" and bool(self._trigger or name in self._names)

    def _named(self, held: Held, at: int) -> Begun | None:
        """Return the call that begins with what stands before a name.

        Raises:
            UnfinishedError: That is not known yet.
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
        return Begun(at, found[NAME], found.get(CALL_ID))

    def _named_by_id(self, held: Held, at: int, after: str) -> Begun | None:
        """Return the call that begins with an id that has its name, before `after`.

        Raises:
            UnfinishedError: That is not known yet.
        """
        most = at + MAX_NAMED
        end = held.text.find(after, at, most + len(after))
        if end < 0:
            if len(held.text) < most + len(after):
                raise UnfinishedError
            return None
        found = name_in(held.text[at:end].strip(), self._names)
        return Begun(held.spaced(end + len(after)), found[0], named_id(*found)) if found else None


def _parts(pieces: Sequence[Piece]) -> Iterator[str | re.Pattern[str]]:
    """Yield texts, without white space around them, and what stands for ids and numbers."""
    for is_text, group in groupby(pieces, lambda piece: piece not in (ID, COUNT)):
        if not is_text:
            yield from (CALL_ID if piece == ID else _COUNT for piece in group)
        elif text := joined(group).strip():
            yield text
