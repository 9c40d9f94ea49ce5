"""Grammar expressions for what a template writes."""

import json
from collections.abc import Iterable, Mapping

from loramux_server.chat.messages import Piece
from loramux_server.tools.syntax import COUNT, ID


def literal(text: str) -> str:
    """Return the grammar expression for `text`, which contains no added token."""
    return json.dumps(text, ensure_ascii=False)


def symbols(ids: Mapping[str, int], pieces: Iterable[Piece]) -> str:
    """Return the grammar expression for `pieces`, whose added tokens have `ids`."""
    return " ".join(_symbol(ids, piece) for piece in pieces)


def _symbol(ids: Mapping[str, int], piece: Piece) -> str:
    if piece in (ID, COUNT):
        return "ID" if piece == ID else "COUNT"
    # A token by its id, which no text can match.
    return f"<[{ids[piece.text]}]>" if piece.is_token else literal(piece.text)
