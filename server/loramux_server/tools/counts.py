"""Recognizing numbers with which a template counts calls."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from loramux_server.chat.messages import Piece
from loramux_server.tools.syntax import COUNT

_PART = re.compile(r"[0-9]+|[^0-9]+")


def counted(first: Sequence[Piece], second: Sequence[Piece]) -> tuple[Piece, ...] | None:
    """Return a part of two consecutive calls, with `COUNT` in place of numbers that count them.

    Args:
        first: The part in the first call.
        second: The part in the second call.

    Returns:
        The part, unchanged if both are equal; None if they differ in anything but a counter.
    """
    one, two = _parts(first), _parts(second)
    if len(one) != len(two):
        return None
    found = []
    for mine, other in zip(one, two, strict=True):
        if mine == other:
            found.append(mine)
        elif _is_next(mine, other):
            found.append(COUNT)
        else:
            return None
    return _joined(found)


def _is_next(one: Piece, other: Piece) -> bool:
    texts = one.text, other.text
    if one.is_token or other.is_token or not all(text.isdecimal() for text in texts):
        return False
    return int(texts[0]) + 1 == int(texts[1])


def _parts(pieces: Iterable[Piece]) -> list[Piece]:
    """Return `pieces` with each number as a piece of its own."""
    return [
        Piece(text, piece.is_token)
        for piece in pieces
        for text in ([piece.text] if piece.is_token else _PART.findall(piece.text) or [""])
    ]


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Return `pieces` with adjacent texts merged."""
    found: list[Piece] = []
    for is_text, group in groupby(pieces, lambda piece: not piece.is_token and piece.text != ""):
        if is_text:
            found.append(Piece("".join(piece.text for piece in group), False))
        else:
            found += group
    return tuple(found)
