"""Locating a tool call in rendered text, and splitting it into parts."""

import json
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import takewhile
from typing import NamedTuple

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Call, Piece
from loramux_server.tools.code_reader import CodeReader
from loramux_server.tools.conversations import SIGN
from loramux_server.tools.syntax import ID, Code, Keys, Parameters, joined

MAX_PART = 200
"""Most characters of each part of the markup."""
_MAX_TRIED = 32
"""Places that are tried as the start of a call's object."""


class UnknownSyntaxError(Exception):
    """A template does not support tools, or writes calls in an unsupported syntax; says which."""


class Parts(NamedTuple):
    """The markup of each call, besides its name and arguments."""

    head: tuple[Piece, ...]
    middle: tuple[Piece, ...]
    tail: tuple[Piece, ...]


class RenderedCall:
    """The parts of one call in an answer."""

    def __init__(
        self, answer: "RenderedText", call: Call, arguments: Parameters | Code | None = None
    ) -> None:
        """Find `call`.

        Args:
            answer: The rendered answer.
            call: The call; it has one argument, a string.
            arguments: How arguments are written; None for a JSON object.

        Raises:
            UnknownSyntaxError: It is not there, or in an unsupported syntax.
        """
        self.answer = answer
        self._id = call.id
        if arguments is None:
            self.place = _located(answer.text, call)
        elif isinstance(arguments, Code):
            self.place = _with_code(answer.text, call, arguments)
        else:
            self.place = _with_parameter(answer.text, call, arguments)
        begin, name, arguments_begin, arguments_end, end, self.keys = self.place

        def part(begin: int, end: int) -> tuple[Piece, ...]:
            return with_ids(answer.part(begin, end), call.id)

        self.opening, head = part(0, begin), part(begin, name)
        if self.keys is None and ID in self.opening:
            at = self.opening.index(ID)
            self.opening, head = self.opening[:at], self.opening[at:]
        tail = part(arguments_end, end)
        if self.keys and ID in tail:
            tail = (Piece("}" * (1 if self.keys.outer is None else 2), False),)
        self.parts = Parts(head, part(name + len(call.name), arguments_begin), tail)

    def closing(self, vocabulary: Vocabulary, ends: Set[str]) -> tuple[Piece, ...]:
        """Return what follows the call until the answer ends.

        The answer ends at a token of `ends`, or, if there is none within MAX_PART characters, at
        the next control token.
        """
        begin = self.place.end
        after = [(at, token) for at, token in self.answer.tokens() if at >= begin]
        found = [at for at, token in after if token in ends and at <= begin + MAX_PART]
        found += [at for at, token in after if token in vocabulary.control]
        text = self.answer.text[begin : found[0] if found else None]
        return with_ids(self.answer.part(begin, begin + len(text.rstrip())), self._id)


class _Located(NamedTuple):
    """Where in an answer a call and its parts are, in characters."""

    begin: int
    name: int
    arguments: int
    arguments_end: int
    end: int
    keys: Keys | None


class RenderedText:
    """Rendered text, and the places of added tokens in it."""

    def __init__(self, pieces: Sequence[Piece], begin: int = 0) -> None:
        self.text = joined(pieces)[begin:]
        self._pieces = pieces
        self._begin = begin

    def after_common_prefix(self, other: str) -> "RenderedText":
        """Return the part after the common beginning with `other`, an answer without calls."""
        both = zip(other, self.text, strict=False)
        begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        if not other.startswith(SIGN, begin):
            # Beyond the prompt, the answer and the call may begin alike: go back to a boundary.
            ends = [at + len(token) for at, token in self.tokens()]
            ends += [at + 1 for at, char in enumerate(self.text[:begin]) if char.isspace()]
            begin = max((end for end in ends if end <= begin), default=0)
        return RenderedText(self._pieces, begin)

    def part(self, begin: int, end: int) -> tuple[Piece, ...]:
        """Return the pieces from character `begin` to `end`.

        Raises:
            UnknownSyntaxError: An added token is only partly in that range.
        """
        begin, end = self._begin + begin, self._begin + end
        found, at = [], 0
        for piece in self._pieces:
            low, high = max(begin, at), min(end, at + len(piece.text))
            if low < high:
                text = piece.text[low - at : high - at]
                if piece.is_token and text != piece.text:
                    raise unreadable()
                found.append(Piece(text, piece.is_token))
            at += len(piece.text)
        return tuple(found)

    def end_of(self, name: str) -> int:
        """Return the offset after the name of a call, which has to occur once.

        Raises:
            UnknownSyntaxError: It does not.
        """
        if self.text.count(name) != 1:
            raise unreadable()
        return self.text.index(name) + len(name)

    def tokens(self) -> Iterator[tuple[int, str]]:
        """Yield (offset, text) of each added token."""
        at = -self._begin
        for piece in self._pieces:
            if piece.is_token and at >= 0:
                yield at, piece.text
            at += len(piece.text)


def _located(answer: str, call: Call) -> _Located:
    """Return where `call`, with a JSON object of arguments, is."""
    name = answer.find(call.name)
    if name < 0:
        raise UnknownSyntaxError("supports tools, but writes no tool calls")
    arguments = _object_at(answer, name + len(call.name), call)
    for begin, (found, end) in _objects(answer, 0, name):
        keys = _keys(found, call)
        if keys and end > name:
            return _Located(begin, name, *arguments, end, keys)
    return _Located(name, name, *arguments, arguments[1], None)


def _with_parameter(answer: str, call: Call, parameters: Parameters) -> _Located:
    """Return where `call`, with its argument as a parameter, is."""
    name = answer.find(call.name)
    ((key, value),) = call.arguments.items()
    text = joined([*parameters.opening, Piece(key, False), *parameters.between])
    text += value + joined(parameters.closing)
    begin = answer.find(text, name)
    if name < 0 or begin < 0:
        raise unreadable()
    end = begin + len(text)
    return _Located(name, name, begin, end, end, None)


def _with_code(answer: str, call: Call, code: Code) -> _Located:
    """Return where `call`, with its arguments as code, is."""
    name = answer.find(call.name)
    begin = name + len(call.name)
    if name < 0 or not answer.startswith(code.begin.strip(), begin):
        raise unreadable()
    reader = CodeReader(code, (), begin)
    try:
        end = reader.find(answer)
    except ValueError:
        end = None
    if end is None or reader.found != call.arguments:
        raise unreadable()
    return _Located(name, name, begin, end, end, None)


def _object_at(answer: str, begin: int, call: Call) -> tuple[int, int]:
    """Return where the arguments of `call` as a JSON object begin and end."""
    for at, (found, end) in _objects(answer, begin, begin + MAX_PART):
        if found == call.arguments:
            return at, end
    raise unreadable()


def _objects(text: str, begin: int, end: int) -> Iterator[tuple[int, tuple[object, int]]]:
    """Yield (begin, (object, end)) of the JSON objects that begin in a part of `text`."""
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
    """Return the keys of `call` in the object `found`; None if it is not there."""
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


def with_ids(pieces: Iterable[Piece], call_id: str) -> tuple[Piece, ...]:
    """Return `pieces` with `ID` in place of `call_id`."""
    found: list[Piece] = []
    for piece in pieces:
        first, *others = piece.text.split(call_id)
        texts = [first, *(text for other in others for text in (None, other))]
        found += [
            ID if text is None else Piece(text, piece.is_token) for text in texts if text != ""
        ]
    return tuple(found)


def unreadable() -> UnknownSyntaxError:
    """Return the error for calls in an unsupported syntax."""
    return UnknownSyntaxError("writes tool calls in an unsupported syntax")
