"""How calls of tools are written."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from loramux_server.chat.messages import Piece

_BRACKETS = "[({"
_WORD = re.compile(r"[][{}(),;]|[^][{}(),;\s]+")

ID = Piece("", False)
"""Stands for the id of a call."""


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

    @property
    def tells_strings(self) -> bool:
        """Whether what stands before a value says that it is a string, or that it is none."""
        return self.between != self.between_others


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
    parameters: Parameters | None = None
    """How arguments are written; None for an object of JSON."""
    takes_text: bool = False
    """Whether the template takes the arguments of calls as text."""

    @property
    def trigger(self) -> str:
        """What begins the first call: a token if there is one, or a word.

        Empty where nothing does that any text could not begin with. Then an answer has calls from
        its beginning or none.
        """
        tokens = [piece.text for piece in self.opening if piece.is_token]
        word = tokens[0] if tokens else next(iter(joined(self.opening).split()), "")
        return word if tokens else word.rstrip(_BRACKETS)


def joined(pieces: Iterable[Piece]) -> str:
    """Return the text of `pieces`."""
    return "".join(piece.text for piece in pieces)


def words_of(pieces: Iterable[Piece]) -> list[str]:
    """Return tokens, brackets and what stands between white space."""
    words: list[str] = []
    for piece in pieces:
        words += [piece.text] if piece.is_token else _WORD.findall(piece.text)
    return words
