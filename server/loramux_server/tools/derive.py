"""How a template writes calls of tools, by what it makes of a few conversations."""

from collections.abc import Sequence, Set

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Piece
from loramux_server.stop_strings import overlap
from loramux_server.tools.conversations import FIRST, SECOND
from loramux_server.tools.syntax import ID, ToolSyntax, joined
from loramux_server.tools.written import (
    MAX_PART,
    UnknownSyntaxError,
    Written,
    WrittenCall,
    unreadable,
    with_ids,
)


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
    first = WrittenCall(Written(calling).unlike(plain), FIRST)
    closing = first.closing(vocabulary, ends)
    separator = None
    if calling_twice is not None:
        known = _tokens(first.opening) | _tokens(closing)
        separator = _separator(
            Written(calling_twice).unlike(plain), first, (vocabulary.control - known) | ends
        )
    between = [first.opening, separator or (), closing]
    written = [*between, first.head, first.middle, first.tail]
    used = {token for part in written for token in _tokens(part)}
    if any(ID in part for part in between) or any(len(joined(part)) > MAX_PART for part in written):
        raise unreadable()
    if not ends.isdisjoint(used - _tokens(closing)):
        raise unreadable()  # the model would end there
    opening = joined(first.opening)
    if opening[: overlap(opening, joined(asking))].strip():
        raise unreadable()  # the prompt begins it, and may be gone on with otherwise
    if not first.keys and not (opening.strip() and joined(first.middle).strip()):
        raise unreadable()  # any word could be a name
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


def _separator(answer: Written, one: WrittenCall, turns: Set[str]) -> tuple[Piece, ...] | None:
    """Return what lies between two calls; None where a token of `turns` ends an answer there.

    Raises:
        UnknownSyntaxError: The calls are not written as the `one` that is alone.
    """
    try:
        first, second = WrittenCall(answer, FIRST), WrittenCall(answer, SECOND)
    except UnknownSyntaxError:
        return None
    between = with_ids(answer.part(first.place.end, second.place.begin), SECOND.id)
    if not turns.isdisjoint(_tokens(between)):
        return None
    if not (one.is_like(first) and one.is_like(second)):
        raise unreadable()
    return between


def _tokens(pieces: Sequence[Piece]) -> set[str]:
    return {piece.text for piece in pieces if piece.is_token}
