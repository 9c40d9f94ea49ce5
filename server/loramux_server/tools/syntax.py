"""How a chat template writes calls of tools, found in what it makes of two conversations."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Call, Piece, Talk, Tool, Turn
from loramux_server.stop_strings import overlap

MAX_PART = 200
"""Characters that a template may put between two parts of calls."""
_BRACKETS = "[({"
_MAX_TRIED = 32
"""Places at which the object of a call may begin."""

_SIGN = "§"
"""Begins an answer as no call begins."""
_ARGUMENTS = {"where": "gamma"}
FIRST = Call("probe0001", "look_up_alpha", dict(_ARGUMENTS))
SECOND = Call("probe0002", "look_up_beta", dict(_ARGUMENTS))
_SCHEMA = {
    "type": "object",
    "properties": {"where": {"type": "string", "description": "A place."}},
    "required": ["where"],
}
TOOLS = [Tool(call.name, "Looks it up.", _SCHEMA) for call in (FIRST, SECOND)]
_ASKED = Turn("user", "Where?")

ASKING = Talk([_ASKED], TOOLS)
ANSWERING = Talk([_ASKED, Turn("assistant", f"{_SIGN} here")], TOOLS)
CALLING = Talk([_ASKED, Turn("assistant", "", [FIRST])], TOOLS)
CALLING_TWICE = Talk([_ASKED, Turn("assistant", "", [FIRST, SECOND])], TOOLS)


ID = Piece("", False)
"""Stands for the id of a call."""


class UnknownSyntaxError(Exception):
    """A template knows of no tools, or writes calls in a way that is not known; says which."""


class Keys(NamedTuple):
    """Where an object of JSON says what is called."""

    outer: str | None
    """Key of the object that has the others; None where it is the object itself."""
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How calls are written: opening, call, separator, call, …, closing.

    A call is head, name, middle, arguments, tail. With `keys` it is an object of JSON.
    """

    opening: tuple[Piece, ...]
    """In this and the others `ID` stands for an id that the model makes up."""
    head: tuple[Piece, ...]
    middle: tuple[Piece, ...]
    tail: tuple[Piece, ...]
    separator: tuple[Piece, ...] | None
    """None where there can be only one call."""
    closing: tuple[Piece, ...]
    keys: Keys | None
    ids: Mapping[str, int]
    """The added tokens among all that."""

    @property
    def trigger(self) -> str:
        """What begins the first call: a token if there is one, or a word.

        Empty where nothing does that any text could not begin with. Then an answer has calls from
        its beginning or none.
        """
        tokens = [piece.text for piece in self.opening if piece.is_token]
        word = tokens[0] if tokens else next(iter(joined(self.opening).split()), "")
        return word if tokens else word.rstrip(_BRACKETS)


def syntax_of(
    asking: Sequence[Piece],
    answering: Sequence[Piece],
    calling: Sequence[Piece],
    calling_twice: Sequence[Piece] | None,
    vocabulary: Vocabulary,
    ends: Set[str],
) -> ToolSyntax:
    """Return how a template writes calls.

    Args:
        asking: What it makes of `ASKING`.
        answering: What it makes of `ANSWERING`.
        calling: What it makes of `CALLING`.
        calling_twice: What it makes of `CALLING_TWICE`; None where it does not take that.
        vocabulary: The tokenizer's added tokens.
        ends: Those that end an answer.

    Raises:
        UnknownSyntaxError: It does not, or in a way that is not known.
    """
    if FIRST.name not in joined(asking):
        raise UnknownSyntaxError("knows of no tools")
    plain = joined(answering)
    first = _Parts(_Text(calling).unlike(plain), FIRST)
    closing = first.closing(vocabulary, ends)
    separator = None
    if calling_twice is not None:
        known = _tokens(first.opening) | _tokens(closing)
        separator = _separator(
            _Text(calling_twice).unlike(plain), first, (vocabulary.control - known) | ends
        )
    between = [first.opening, separator or (), closing]
    written = [*between, first.head, first.middle, first.tail]
    used = {token for part in written for token in _tokens(part)}
    if any(ID in part for part in between) or any(len(joined(part)) > MAX_PART for part in written):
        raise _unreadable()
    if not ends.isdisjoint(used - _tokens(closing)):
        raise _unreadable()  # the model would end there
    opening = joined(first.opening)
    if opening[: overlap(opening, joined(asking))].strip():
        raise _unreadable()  # the prompt begins it, and may be gone on with otherwise
    if not first.keys and not (opening.strip() and joined(first.middle).strip()):
        raise _unreadable()  # any word could be a name
    return ToolSyntax(
        opening=first.opening,
        head=first.head,
        middle=first.middle,
        tail=first.tail,
        separator=separator,
        closing=closing,
        keys=first.keys,
        ids={token: vocabulary.ids[token] for token in used},
    )


class _Parts:
    """The parts of one call in an answer."""

    def __init__(self, answer: "_Text", call: Call) -> None:
        """Find `call`.

        Raises:
            UnknownSyntaxError: It is not there, or not in a way that is known.
        """
        self.answer = answer
        self.place = _located(answer.text, call)
        begin, name, arguments, arguments_end, end, self.keys = self.place

        def part(begin: int, end: int) -> tuple[Piece, ...]:
            return _with_ids(answer.part(begin, end), call.id)

        self.opening = part(0, begin)
        self.head = part(begin, name)
        self.middle = part(name + len(call.name), arguments)
        self.tail = part(arguments_end, end)
        if self.keys and ID in self.tail:
            self.tail = (Piece("}" * (1 if self.keys.outer is None else 2), False),)

    def closing(self, vocabulary: Vocabulary, ends: Set[str]) -> tuple[Piece, ...]:
        """Return what follows the call until the answer ends."""
        end = _end_of_answer(self.answer, self.place.end, vocabulary, ends)
        return _with_ids(self.answer.part(self.place.end, end), FIRST.id)

    def is_like(self, other: "_Parts") -> bool:
        """Return whether another call is written the same way."""
        mine = (self.head, self.middle, self.tail, self.keys)
        return mine == (other.head, other.middle, other.tail, other.keys)


class _Located(NamedTuple):
    """Where in an answer a call is, in characters."""

    begin: int
    name: int
    arguments: int
    arguments_end: int
    end: int
    keys: Keys | None


class _Text:
    """What a template wrote, and where in it tokens are."""

    def __init__(self, pieces: Sequence[Piece], begin: int = 0) -> None:
        self.text = joined(pieces)[begin:]
        self._pieces = pieces
        self._begin = begin

    def unlike(self, other: str) -> "_Text":
        """Return this from where on it is unlike `other`, an answer without calls."""
        both = zip(other, self.text, strict=False)
        begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        if not other.startswith(_SIGN, begin):
            # What begins it may be like what begins a call.
            ends = [at + len(token) for at, token in self.tokens()]
            ends += [at + 1 for at, char in enumerate(self.text[:begin]) if char.isspace()]
            begin = max((end for end in ends if end <= begin), default=0)
        return _Text(self._pieces, begin)

    def part(self, begin: int, end: int) -> tuple[Piece, ...]:
        """Return the pieces from the character `begin` to `end`."""
        begin, end = self._begin + begin, self._begin + end
        found, at = [], 0
        for piece in self._pieces:
            low, high = max(begin, at), min(end, at + len(piece.text))
            if low < high:
                text = piece.text[low - at : high - at]
                if piece.is_token and text != piece.text:
                    raise _unreadable()
                found.append(Piece(text, piece.is_token))
            at += len(piece.text)
        return tuple(found)

    def tokens(self) -> Iterator[tuple[int, str]]:
        """Yield where each added token is."""
        at = -self._begin
        for piece in self._pieces:
            if piece.is_token and at >= 0:
                yield at, piece.text
            at += len(piece.text)


def _located(answer: str, call: Call) -> _Located:
    """Return where `call` is."""
    name = answer.find(call.name)
    if name < 0:
        raise UnknownSyntaxError("knows of tools, but writes no calls of them")
    arguments = _object_at(answer, name + len(call.name), call)
    for begin, (found, end) in _objects(answer, 0, name):
        keys = _keys(found, call)
        if keys and end > name:
            return _Located(begin, name, *arguments, end, keys)
    return _Located(name, name, *arguments, arguments[1], None)


def _object_at(answer: str, begin: int, call: Call) -> tuple[int, int]:
    """Return where the arguments of `call` begin and end."""
    for at, (found, end) in _objects(answer, begin, begin + MAX_PART):
        if found == call.arguments:
            return at, end
    raise _unreadable()


def _objects(text: str, begin: int, end: int) -> Iterator[tuple[int, tuple[object, int]]]:
    """Yield the objects of JSON that begin in a part of `text`."""
    at = begin - 1
    for _ in range(_MAX_TRIED):
        at = text.find("{", at + 1, end)
        if at < 0:
            return
        try:
            yield at, json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            continue


def _keys(found: object, call: Call) -> Keys | None:
    """Return where in an object `call` is; None if it is elsewhere."""
    if not isinstance(found, dict):
        return None
    outer = None
    for key, value in found.items():
        if isinstance(value, dict) and call.name in value.values():
            outer, found = key, value
            break
    names = [key for key, value in found.items() if value == call.name]
    arguments = [key for key, value in found.items() if value == call.arguments]
    return Keys(outer, names[0], arguments[0]) if names and arguments else None


def _separator(answer: _Text, one: _Parts, turns: Set[str]) -> tuple[Piece, ...] | None:
    """Return what lies between two calls; None where a token of `turns` ends an answer there.

    Raises:
        UnknownSyntaxError: The calls are not written as the `one` that is alone.
    """
    try:
        first, second = _Parts(answer, FIRST), _Parts(answer, SECOND)
    except UnknownSyntaxError:
        return None
    between = _with_ids(answer.part(first.place.end, second.place.begin), SECOND.id)
    if not turns.isdisjoint(_tokens(between)):
        return None
    if not (one.is_like(first) and one.is_like(second)):
        raise _unreadable()
    return between


def _end_of_answer(answer: _Text, begin: int, vocabulary: Vocabulary, ends: Set[str]) -> int:
    """Return where what the model has to write ends."""
    after = [(at, token) for at, token in answer.tokens() if at >= begin]
    found = [at for at, token in after if token in ends]
    found += [at for at, token in after if token in vocabulary.control]
    return begin + len(answer.text[begin : found[0] if found else None].rstrip())


def _with_ids(pieces: Iterable[Piece], call_id: str) -> tuple[Piece, ...]:
    """Return `pieces` with `ID` in place of the id of a call."""
    found: list[Piece] = []
    for piece in pieces:
        first, *others = piece.text.split(call_id)
        texts = [first, *(text for other in others for text in (None, other))]
        found += [
            ID if text is None else Piece(text, piece.is_token) for text in texts if text != ""
        ]
    return tuple(found)


def _tokens(pieces: Sequence[Piece]) -> set[str]:
    return {piece.text for piece in pieces if piece.is_token}


def joined(pieces: Sequence[Piece]) -> str:
    """Return the text of `pieces`."""
    return "".join(piece.text for piece in pieces)


def _unreadable() -> UnknownSyntaxError:
    return UnknownSyntaxError("writes calls of tools in a way that this server does not read")
