"""The syntax of tool calls."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from loramux_server.chat.messages import Piece

_BRACKETS = "[({"
_MARK = re.compile(r"<[^\s<>]*>?|[^\s<]+")
_WORD = re.compile(r"[][{}(),;]|[^][{}(),;\s]+")

ID = Piece("", False)
"""Placeholder for the id of a call."""
COUNT = Piece("", True)
"""Placeholder for a number that counts calls."""


class Keys(NamedTuple):
    """The keys of a call that is a JSON object."""

    outer: str | None
    """Key of the inner object with the other two keys; None if they are at the top level."""
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parameters:
    """How arguments are written one by one: opening, name, between, value, closing for each.

    A string is written verbatim, other values as JSON.
    """

    opening: tuple[Piece, ...]
    between: tuple[Piece, ...]
    """Before a string."""
    between_others: tuple[Piece, ...]
    """Before other values; begins with the same word, and is usually the same."""
    closing: tuple[Piece, ...]
    is_python: bool
    """Whether booleans and null are spelled as in Python: `True`, `None`."""
    wrapping: tuple[str, str] | None = None
    """What wraps strings that contain possible delimiters; None if nothing does."""

    @property
    def tells_strings(self) -> bool:
        """Whether what precedes a value tells whether it is a string."""
        return self.between != self.between_others


@dataclass(frozen=True, slots=True)
class Code:
    """How arguments are written as code: begin, name, assign, value, comma, name, …, end.

    Values are spelled as in Python or JSON. White space around these parts may vary.
    """

    begin: str
    assign: str
    comma: str
    end: str
    quote: Piece | None
    """The quote before and after a string; None for none."""
    quotes_all: bool
    """Whether other values are quoted as well."""
    is_python: bool
    """Whether booleans and null are spelled as in Python: `True`, `None`."""


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How calls are written: opening, call, separator, call, …, closing.

    A call is head, name, middle, arguments, tail. With `keys` it is a JSON object.
    """

    opening: tuple[Piece, ...]
    """In this and the other parts, `ID` is a placeholder for an id that the model generates, and
    `COUNT` for a number."""
    head: tuple[Piece, ...]
    middle: tuple[Piece, ...]
    tail: tuple[Piece, ...]
    separator: tuple[Piece, ...] | None
    """None if there can be only one call."""
    closing: tuple[Piece, ...]
    keys: Keys | None
    ids: Mapping[str, int]
    """Ids of the added tokens in all of this."""
    arguments: Parameters | Code | None = None
    """How arguments are written; None for a JSON object."""
    takes_text: bool = False
    """Whether the template expects the arguments of calls as a string."""
    is_named_by_id: bool = False
    """Whether a call has an id in place of a name, and the id contains the name."""

    @property
    def parameters(self) -> Parameters | None:
        """How arguments are written, if one by one."""
        return self.arguments if isinstance(self.arguments, Parameters) else None

    @property
    def code(self) -> Code | None:
        """How arguments are written, if as code."""
        return self.arguments if isinstance(self.arguments, Code) else None

    @property
    def trigger(self) -> str:
        """The text with which calls begin: a token if there is one, or else a word.

        Empty if the opening has neither. Then calls can only be at the start of an answer.
        """
        at = self.first_token
        if at is None:
            return next(iter(joined(self.opening).split()), "").rstrip(_BRACKETS)
        before = joined(self.opening[:at])
        # Text directly before the token belongs to the same word.
        begun = "" if before[-1:].isspace() else next(iter(before.split()[-1:]), "")
        return begun + self.opening[at].text

    @property
    def first_token(self) -> int | None:
        """Index of the first token in the opening; None if there is none."""
        return next((at for at, piece in enumerate(self.opening) if piece.is_token), None)


def joined(pieces: Iterable[Piece]) -> str:
    """Return the text of `pieces`."""
    return "".join(piece.text for piece in pieces)


def words_of(pieces: Iterable[Piece]) -> list[str]:
    """Return the words of `pieces`: added tokens, brackets, `,`, `;`, and what lies between."""
    words: list[str] = []
    for piece in pieces:
        words += [piece.text] if piece.is_token else _WORD.findall(piece.text)
    return words


def marks_of(pieces: Iterable[Piece]) -> list[str]:
    """Return the delimiters in `pieces`, tags or words, between which white space may be."""
    return _MARK.findall(joined(pieces))
