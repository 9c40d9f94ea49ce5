"""What a template writes, as a grammar has it."""

import json
from collections.abc import Iterable, Mapping

from loramux_server.chat.messages import Piece
from loramux_server.tools.syntax import COUNT, ID


def literal(text: str) -> str:
    """Return what stands in a rule for `text`, in which there is no token."""
    return json.dumps(text, ensure_ascii=False)


def symbols(ids: Mapping[str, int], pieces: Iterable[Piece]) -> str:
    """Return what stands in a rule for `pieces`, whose tokens have `ids`."""
    return " ".join(_symbol(ids, piece) for piece in pieces)


def _symbol(ids: Mapping[str, int], piece: Piece) -> str:
    if piece in (ID, COUNT):
        return "ID" if piece == ID else "COUNT"
    # A token by its number, which no text has.
    return f"<[{ids[piece.text]}]>" if piece.is_token else literal(piece.text)
