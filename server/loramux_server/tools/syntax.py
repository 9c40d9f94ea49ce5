"""How calls of tools are written."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from loramux_server.chat.messages import Piece

_BRACKETS = "[({"
_MARK = re.compile(r"<[^\s<>]*>?|[^\s<]+")
_WORD = re.compile(r"[][{}(),;]|[^][{}(),;\s]+")

ID = Piece("", False)
"""Stands for the id of a call."""
COUNT = Piece("", True)
"""Stands for a number that counts calls."""


class Keys(NamedTuple):
    """Where an object of JSON says what is called."""

    outer: str | None
    """Key of the object that has the others; None where it is the object itself."""
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parameters:
    """How arguments are written that are no object: each is opening, name, between, value, closing.

    A string is written as it is, other values as JSON.
    """

    opening: tuple[Piece, ...]
    between: tuple[Piece, ...]
    """Before a string."""
    between_others: tuple[Piece, ...]
    """Before what is no string; begins with the same word, and is mostly the same."""
    closing: tuple[Piece, ...]
    is_python: bool
    """Whether truth and nothing are written as Python has them: `True`, `None`."""
    wrapping: tuple[str, str] | None = None
    """What stands around strings that hold what could be taken for marks; None if nothing."""

    @property
    def tells_strings(self) -> bool:
        """Whether what stands before a value says that it is a string, or that it is none."""
        return self.between != self.between_others


@dataclass(frozen=True, slots=True)
class Code:
    """How arguments are written as code: begin, name, assign, value, comma, name, …, end.

    Values are those of Python or of JSON. White space beside all that may be another.
    """

    begin: str
    assign: str
    comma: str
    end: str
    quote: Piece | None
    """What stands before and after a string; None if nothing."""
    quotes_all: bool
    """Whether that stands around what is no string as well."""
    is_python: bool
    """Whether truth and nothing are written as Python has them: `True`, `None`."""


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How calls are written: opening, call, separator, call, …, closing.

    A call is head, name, middle, arguments, tail. With `keys` it is an object of JSON.
    """

    opening: tuple[Piece, ...]
    """In this and the others `ID` stands for an id that the model makes up, and `COUNT` for a
    number."""
    head: tuple[Piece, ...]
    middle: tuple[Piece, ...]
    tail: tuple[Piece, ...]
    separator: tuple[Piece, ...] | None
    """None where there can be only one call."""
    closing: tuple[Piece, ...]
    keys: Keys | None
    ids: Mapping[str, int]
    """The added tokens among all that."""
    arguments: Parameters | Code | None = None
    """How arguments are written; None for an object of JSON."""
    takes_text: bool = False
    """Whether the template takes the arguments of calls as text."""
    is_named_by_id: bool = False
    """Whether a call has an id in place of a name, and the id has the name."""

    @property
    def parameters(self) -> Parameters | None:
        """How arguments are written, where that is one by one."""
        return self.arguments if isinstance(self.arguments, Parameters) else None

    @property
    def code(self) -> Code | None:
        """How arguments are written, where that is as code."""
        return self.arguments if isinstance(self.arguments, Code) else None

    @property
    def trigger(self) -> str:
        """What begins the first call: a token if there is one, or a word.

        Empty where nothing does that any text could not begin with. Then an answer has calls from
        its beginning or none.
        """
        at = self.first_token
        if at is None:
            return next(iter(joined(self.opening).split()), "").rstrip(_BRACKETS)
        before = joined(self.opening[:at])
        # A token may be in the middle of a word.
        begun = "" if before[-1:].isspace() else next(iter(before.split()[-1:]), "")
        return begun + self.opening[at].text

    @property
    def first_token(self) -> int | None:
        """Where in the opening the first token is; None if there is none."""
        return next((at for at, piece in enumerate(self.opening) if piece.is_token), None)


def joined(pieces: Iterable[Piece]) -> str:
    """Return the text of `pieces`."""
    return "".join(piece.text for piece in pieces)


def words_of(pieces: Iterable[Piece]) -> list[str]:
    """Return tokens, brackets and what stands between white space."""
    words: list[str] = []
    for piece in pieces:
        words += [piece.text] if piece.is_token else _WORD.findall(piece.text)
    return words


def marks_of(pieces: Iterable[Piece]) -> list[str]:
    """Return the parts of `pieces` between which there may be white space, tokens or not."""
    return _MARK.findall(joined(pieces))
