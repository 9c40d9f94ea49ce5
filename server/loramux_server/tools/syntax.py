"""How calls of tools are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loramux_server.chat.messages import Piece

_BRACKETS = "[({"

ID = Piece("", False)
"""Stands for the id of a call."""


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


def joined(pieces: Sequence[Piece]) -> str:
    """Return the text of `pieces`."""
    return "".join(piece.text for piece in pieces)
