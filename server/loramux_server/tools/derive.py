"""Deriving the syntax of tool calls from a few rendered conversations."""

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Call, Piece
from loramux_server.text.stop_strings import overlap
from loramux_server.tools.arguments import NAME
from loramux_server.tools.conversations import FIRST, SECOND, THOUGHT
from loramux_server.tools.counts import counted
from loramux_server.tools.ids import AFTER_NAME, BEFORE_NAME
from loramux_server.tools.rendered_text import (
    MAX_PART,
    Parts,
    RenderedCall,
    RenderedText,
    UnknownSyntaxError,
    unreadable,
    with_ids,
)
from loramux_server.tools.syntax import COUNT, ID, Code, Parameters, ToolSyntax, joined


class Renderings(NamedTuple):
    """Conversations as rendered by a template, with the calls in one form."""

    asking: Sequence[Piece]
    """`ASKING`, with the generation prompt."""
    answering: Sequence[Piece]
    """`ANSWERING`."""
    calling: Sequence[Piece]
    """One call, as of `FIRST`."""
    calling_twice: Sequence[Piece] | None
    """Two calls, as of `FIRST` and `SECOND`; None if the template rejects that."""
    thinking: Sequence[Piece] | None = None
    """One call, after reasoning; None if the template rejects that."""


def syntax_of(
    renderings: Renderings,
    vocabulary: Vocabulary,
    ends: Set[str],
    arguments: Parameters | Code | None = None,
    calls: Sequence[Call] = (FIRST, SECOND),
) -> ToolSyntax:
    """Return how a template writes calls.

    Args:
        renderings: The rendered conversations.
        vocabulary: The tokenizer's added tokens.
        ends: Those that end an answer.
        arguments: How arguments are written; None for a JSON object.
        calls: The calls in the conversations.

    Raises:
        UnknownSyntaxError: It writes none, or in an unsupported syntax.
    """
    asking = joined(renderings.asking)
    if calls[0].name not in asking:
        raise UnknownSyntaxError("does not support tools")
    plain = joined(renderings.answering)
    first = RenderedCall(
        RenderedText(renderings.calling).after_common_prefix(plain), calls[0], arguments
    )
    closing = first.closing(vocabulary, ends)
    beginning = first.opening
    if renderings.thinking is not None:
        beginning = _without_reasoning(
            beginning, RenderedText(renderings.thinking).after_common_prefix(plain)
        )
    beginning = _after_prompt(beginning, renderings.asking)
    separator, parts = None, first.parts
    if renderings.calling_twice is not None:
        known = _tokens(beginning) | _tokens(closing)
        answer = RenderedText(renderings.calling_twice).after_common_prefix(plain)
        found = _separated(answer, first, (vocabulary.control - known) | ends, arguments, calls)
        if found is not None:
            separator, parts = found
    head, middle, tail = parts
    between = [beginning, separator or (), closing]
    written = [*between, *parts]
    if isinstance(arguments, Parameters):
        written += [
            arguments.opening, arguments.between, arguments.between_others, arguments.closing,
        ]  # fmt: skip
    used = {token for part in written for token in _tokens(part)}
    if isinstance(arguments, Code) and arguments.quote:
        used |= _tokens([arguments.quote])
    if any(ID in part for part in between) or any(len(joined(part)) > MAX_PART for part in written):
        raise unreadable()
    if not ends.isdisjoint(used - _tokens(closing)):
        raise unreadable()  # generation would stop there
    opening = joined(beginning)
    if opening[: overlap(opening, asking)].strip():
        raise unreadable()  # the prompt already begins it, so it does not tell a call from text
    if not first.keys and not (opening.strip() and _delimits_name(middle, closing, arguments)):
        raise unreadable()  # any word could be a name
    return ToolSyntax(
        opening=beginning,
        head=head,
        middle=middle,
        tail=tail,
        separator=separator,
        closing=closing,
        keys=first.keys,
        ids={token: vocabulary.ids[token] for token in used},
        arguments=arguments,
        is_named_by_id=joined(beginning).endswith(BEFORE_NAME) and _follows_name(middle),
    )


def _follows_name(middle: Sequence[Piece]) -> bool:
    """Return whether `middle` is the rest of an id that contains the name, and more text."""
    return joined(middle[:1]) == AFTER_NAME and tuple(middle[1:2]) == (COUNT,) and len(middle) > 2


def _without_reasoning(opening: tuple[Piece, ...], thinking: RenderedText) -> tuple[Piece, ...]:
    """Return `opening` without the reasoning markers that are written even without reasoning.

    Args:
        opening: What precedes a call.
        thinking: The same answer with reasoning before the call.
    """
    begin = thinking.text.find(THOUGHT) + len(THOUGHT)
    lengths = [
        length
        for length in range(1, len(opening))
        if begin >= len(THOUGHT)
        and opening[-length].is_token
        and thinking.text.startswith(joined(opening[-length:]), begin)
    ]
    # The first token of the common part ends the reasoning.
    return opening[len(opening) - max(lengths) + 1 :] if lengths else opening


def _after_prompt(opening: tuple[Piece, ...], asking: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return `opening` without a beginning that ends the prompt, if a token follows that."""
    prompt = tuple(asking)
    most = min(len(opening) - 1, len(prompt))
    lengths = [
        length
        for length in range(1, most + 1)
        if opening[length].is_token and prompt[-length:] == opening[:length]
    ]
    return opening[max(lengths, default=0) :]


def _separated(
    answer: RenderedText,
    one: RenderedCall,
    turns: Set[str],
    arguments: Parameters | Code | None,
    calls: Sequence[Call],
) -> tuple[tuple[Piece, ...], Parts] | None:
    """Return the separator of two calls, and their common parts; None if they are two answers.

    They are two answers if a token of `turns` lies between them.

    Raises:
        UnknownSyntaxError: The calls are not written like `one`, which is alone.
    """
    try:
        first, second = (RenderedCall(answer, call, arguments) for call in calls)
    except UnknownSyntaxError:
        return None
    between = with_ids(answer.part(first.place.end, second.place.begin), calls[1].id)
    if not one.keys and ID in between:  # the id belongs to the second call
        between = between[: between.index(ID)]
    if not turns.isdisjoint(_tokens(between)):
        return None
    if one.parts != first.parts or (one.keys, one.keys) != (first.keys, second.keys):
        raise unreadable()
    both = zip(one.parts, second.parts, strict=True)
    parts = [part for each in both if (part := counted(*each)) is not None]
    if len(parts) != len(one.parts):
        raise unreadable()
    return between, Parts(*parts)


def _delimits_name(
    middle: Sequence[Piece], closing: Sequence[Piece], arguments: Parameters | Code | None
) -> bool:
    """Return whether the end of a name can be recognized."""
    if isinstance(arguments, Code):
        return not middle
    if middle[:1] in ((ID,), (COUNT,)):
        return False
    if isinstance(arguments, Parameters):  # there may be none, then `closing` follows
        return all(_ends_name((*middle, *part)) for part in (arguments.opening, closing))
    return _ends_name(middle)


def _ends_name(pieces: Sequence[Piece]) -> bool:
    """Return whether `pieces` after a name mark its end."""
    text = joined(pieces)
    return bool(text.strip()) and not NAME.match(text)


def _tokens(pieces: Iterable[Piece]) -> set[str]:
    return {piece.text for piece in pieces if piece.is_token and piece != COUNT}
