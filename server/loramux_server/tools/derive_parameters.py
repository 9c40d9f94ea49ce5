"""Deriving the syntax of arguments written one by one, from a few rendered calls."""

import json
from collections.abc import Sequence
from itertools import takewhile

from loramux_server.chat.messages import Piece
from loramux_server.tools.conversations import FIRST, KEYS, STRINGS, VALUES
from loramux_server.tools.rendered_text import MAX_PART, RenderedText, unreadable
from loramux_server.tools.syntax import Parameters, joined, marks_of

_ENDS = ">])}"
"""Characters with which a delimiter may end."""
_LEAST_MARK = 3
"""Least characters of a delimiter that values are unlikely to contain by chance."""


def parameters_of(
    answering: Sequence[Piece],
    calling: Sequence[Piece],
    with_two: Sequence[Piece],
    with_none: Sequence[Piece] | None,
    with_each: Sequence[Sequence[Piece]],
) -> Parameters:
    """Return how a template writes the arguments of calls one by one.

    Args:
        answering: A rendered answer without calls.
        calling: A call with KEYS[1] and STRINGS[1].
        with_two: A call with both of KEYS and STRINGS.
        with_none: A call without arguments; None if the template rejects that.
        with_each: Calls with KEYS[1] and each of VALUES.

    Raises:
        UnknownSyntaxError: It does not, or in an unsupported syntax.
    """
    plain = joined(answering)
    found = _between_two(RenderedText(with_two).after_common_prefix(plain))
    one = RenderedText(calling).after_common_prefix(plain)
    value = _value_at(one)
    around = joined(found.between)
    if not one.text.startswith(around + STRINGS[1], value):
        raise unreadable()
    end = one.text[value + len(around) + len(STRINGS[1]) :]
    others, is_python, wrapping = set(), False, None
    for expected, pieces in zip(VALUES, with_each, strict=True):
        answer = RenderedText(pieces).after_common_prefix(plain)
        begin = _value_at(answer)
        text = answer.text[begin:].removesuffix(end)
        if len(text) != len(answer.text) - begin - len(end):
            raise unreadable()
        if isinstance(expected, str):
            wrapping = _wrapping(text.removeprefix(around), expected)
            continue
        spelled = _spelled(text, expected)
        others.add(answer.part(begin, begin + len(text) - len(spelled)))
        is_python |= expected is True and spelled != "true"
    if len(others) != 1:
        raise unreadable()
    (other,) = others
    if marks_of(other)[:1] != marks_of(found.between)[:1]:
        raise unreadable()
    if with_none is not None:
        _check_none(RenderedText(with_none).after_common_prefix(plain), one, found, end)
    return Parameters(found.opening, found.between, other, found.closing, is_python, wrapping)


def _wrapping(text: str, value: str) -> tuple[str, str] | None:
    """Return what wraps a string that contains delimiters; None if nothing does."""
    opening, _, closing = text.partition(value)
    if text == value:
        return None
    if min(len(opening), len(closing)) < _LEAST_MARK or len(text) > len(value) + MAX_PART:
        raise unreadable()
    return opening, closing


def _between_two(answer: RenderedText) -> Parameters:
    """Return the syntax around two strings."""
    text = answer.text
    places = [answer.end_of(FIRST.name)]
    for word in (KEYS[0], STRINGS[0], KEYS[1], STRINGS[1]):
        begin = text.find(word, places[-1])
        if begin < 0:
            raise unreadable()
        places += [begin, begin + len(word)]
    (name, key, key_end, value, value_end, key2, key2_end, value2, value2_end) = places
    between = answer.part(key_end, value)
    closed = _alike(answer, value_end, key2, value2_end)
    closing, opening = answer.part(value_end, closed), answer.part(closed, key2)
    before = key - len(joined(opening))
    if before < name or opening != answer.part(before, key):
        raise unreadable()
    if between != answer.part(key2_end, value2):
        raise unreadable()
    for part in (opening, between, closing):
        if not joined(part).strip():
            raise unreadable()
    for first, *_ in (marks_of(opening), marks_of(closing)):
        if len(first) < _LEAST_MARK:
            raise unreadable()  # any value could contain it
    return Parameters(opening, between, between, closing, is_python=False)


def _alike(answer: RenderedText, begin: int, end: int, other: int) -> int:
    """Return where the common text after `begin` and `other` ends, at a white space or bracket."""
    text = answer.text
    both = zip(text[begin:end], text[other:], strict=False)
    most = begin + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
    ends = [
        at for at in range(begin + 1, most + 1) if text[at - 1].isspace() or text[at - 1] in _ENDS
    ]
    return max(ends, default=begin)


def _value_at(answer: RenderedText) -> int:
    """Return the offset after KEYS[1]."""
    begin = answer.text.find(KEYS[1], answer.end_of(FIRST.name))
    if begin < 0:
        raise unreadable()
    return begin + len(KEYS[1])


def _spelled(text: str, value: object) -> str:
    """Return the spelling of `value` with which `text` ends."""
    for spelled in (json.dumps(value), json.dumps(value, separators=(",", ":")), str(value)):
        if text.endswith(spelled):
            return spelled
    raise unreadable()


def _check_none(answer: RenderedText, one: RenderedText, found: Parameters, end: str) -> None:
    """Demand that a call without arguments is `one` without its parameter."""
    key = one.text.find(KEYS[1], one.end_of(FIRST.name))
    before = one.text[one.end_of(FIRST.name) : key].removesuffix(joined(found.opening))
    after = end.removeprefix(joined(found.closing))
    written = answer.text[answer.end_of(FIRST.name) :]
    if "".join(written.split()) != "".join((before + after).split()):
        raise unreadable()
