"""How a template writes calls of tools, by what it makes of a few conversations."""

from collections.abc import Sequence, Set

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Piece
from loramux_server.stop_strings import overlap
from loramux_server.tools.arguments import NAME
from loramux_server.tools.conversations import FIRST, SECOND
from loramux_server.tools.syntax import ID, Parameters, ToolSyntax, joined
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
    parameters: Parameters | None = None,
) -> ToolSyntax:
    """Return how a template writes calls.

    Args:
        asking: What it makes of `ASKING`.
        answering: What it makes of `ANSWERING`.
        calling: What it makes of `CALLING`.
        calling_twice: What it makes of `CALLING_TWICE`; None where it does not take that.
        vocabulary: The tokenizer's added tokens.
        ends: Those that end an answer.
        parameters: How arguments are written; None for an object of JSON.

    Raises:
        UnknownSyntaxError: It does not, or in a way that is not known.
    """
    if FIRST.name not in joined(asking):
        raise UnknownSyntaxError("knows of no tools")
    plain = joined(answering)
    first = WrittenCall(Written(calling).unlike(plain), FIRST, parameters)
    closing = first.closing(vocabulary, ends)
    separator = None
    if calling_twice is not None:
        known = _tokens(first.opening) | _tokens(closing)
        separator = _separator(
            Written(calling_twice).unlike(plain), first, (vocabulary.control - known) | ends,
            parameters,
        )  # fmt: skip
    between = [first.opening, separator or (), closing]
    written = [*between, first.head, first.middle, first.tail]
    if parameters is not None:
        written += [
            parameters.opening, parameters.between, parameters.between_others, parameters.closing,
        ]  # fmt: skip
    used = {token for part in written for token in _tokens(part)}
    if any(ID in part for part in between) or any(len(joined(part)) > MAX_PART for part in written):
        raise unreadable()
    if not ends.isdisjoint(used - _tokens(closing)):
        raise unreadable()  # the model would end there
    opening = joined(first.opening)
    if opening[: overlap(opening, joined(asking))].strip():
        raise unreadable()  # the prompt begins it, and may be gone on with otherwise
    after_name = [first.middle]
    if parameters is not None:  # of which there may be none
        after_name = [(*first.middle, *part) for part in (parameters.opening, closing)]
    if not first.keys and not (opening.strip() and all(map(_ends_name, after_name))):
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
        parameters=parameters,
    )


def _separator(
    answer: Written, one: WrittenCall, turns: Set[str], parameters: Parameters | None
) -> tuple[Piece, ...] | None:
    """Return what lies between two calls; None where a token of `turns` ends an answer there.

    Raises:
        UnknownSyntaxError: The calls are not written as the `one` that is alone.
    """
    try:
        first, second = (WrittenCall(answer, call, parameters) for call in (FIRST, SECOND))
    except UnknownSyntaxError:
        return None
    between = with_ids(answer.part(first.place.end, second.place.begin), SECOND.id)
    if not turns.isdisjoint(_tokens(between)):
        return None
    if not (one.is_like(first) and one.is_like(second)):
        raise unreadable()
    return between


def _ends_name(pieces: Sequence[Piece]) -> bool:
    """Return whether a name ends where `pieces` follow it."""
    text = joined(pieces)
    return bool(text.strip()) and not NAME.match(text)


def _tokens(pieces: Sequence[Piece]) -> set[str]:
    return {piece.text for piece in pieces if piece.is_token}
