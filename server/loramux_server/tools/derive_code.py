"""Deriving the syntax of arguments written as code, from a few rendered calls."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from loramux_server.chat.messages import Piece
from loramux_server.tools.code_reader import MAX_QUOTE, CodeReader
from loramux_server.tools.conversations import AWKWARD, FIRST, KEYS, STRINGS, VALUES
from loramux_server.tools.parameter_reader import Given
from loramux_server.tools.rendered_text import RenderedText, unreadable
from loramux_server.tools.syntax import Code, joined
from loramux_server.tools.values import value_of

_BEGIN = re.compile(rf"([({{]\s*){KEYS[0]}(\s*[=:]\s*)(\S{{0,{MAX_QUOTE}}}?){STRINGS[0]}")
_BETWEEN = re.compile(rf"(\s*,\s*){KEYS[1]}")
_CLOSING = {"(": ")", "{": "}"}
_QUOTE = re.compile(r"['\"]|[^\s\w,=:()\[\]{}'\"\\].{2,}")
"""A supported quote: one that is escaped in strings, or is unlikely to occur in one."""


def code_of(
    answering: Sequence[Piece],
    with_two: Sequence[Piece],
    with_none: Sequence[Piece] | None,
    with_each: Sequence[Sequence[Piece]],
    with_awkward: Sequence[Piece],
) -> Code:
    """Return how a template writes the arguments of calls as code.

    Args:
        answering: A rendered answer without calls.
        with_two: A call with both of KEYS and STRINGS.
        with_none: A call without arguments; None if the template rejects that.
        with_each: Calls with KEYS[1] and each of VALUES.
        with_awkward: A call with KEYS[1] and AWKWARD.

    Raises:
        UnknownSyntaxError: It does not, or in an unsupported syntax.
    """
    plain = joined(answering)
    answers = [RenderedText(each).after_common_prefix(plain) for each in with_each]
    code = _between_two(RenderedText(with_two).after_common_prefix(plain))
    code = _with_values(code, answers)
    expected = dict(zip(KEYS, STRINGS, strict=True))
    if _read(code, RenderedText(with_two).after_common_prefix(plain)) != expected:
        raise unreadable()
    if (
        with_none is not None
        and _read(code, RenderedText(with_none).after_common_prefix(plain)) != {}
    ):
        raise unreadable()
    for value, answer in zip(VALUES, answers, strict=True):
        if not _is_same(code, answer, value):
            raise unreadable()
    if not _is_same(code, RenderedText(with_awkward).after_common_prefix(plain), AWKWARD):
        raise unreadable()
    return code


def _between_two(answer: RenderedText) -> Code:
    """Return the syntax around two strings; what else `Code` says is not known yet."""
    text, begin = answer.text, answer.end_of(FIRST.name)
    found = _BEGIN.match(text, begin)
    if found is None:
        raise unreadable()
    opening, assign, quote = found.groups()
    end = _quoted_end(text, found.end(), quote)
    between = _BETWEEN.match(text, end)
    if between is None or not text.startswith(assign + quote + STRINGS[1], between.end()):
        raise unreadable()
    end = _quoted_end(text, between.end() + len(assign + quote + STRINGS[1]), quote)
    closing = re.compile(rf"\s*{re.escape(_CLOSING[opening[0]])}").match(text, end)
    pieces = answer.part(found.start(3), found.end(3))
    if closing is None or len(pieces) > 1 or (quote and not _QUOTE.fullmatch(quote)):
        raise unreadable()
    return Code(
        begin=opening, assign=assign, comma=between[1], end=closing[0],
        quote=pieces[0] if pieces else None, quotes_all=False, is_python=False,
    )  # fmt: skip


def _quoted_end(text: str, begin: int, quote: str) -> int:
    """Return the end of a string's closing quote, which begins at `begin`."""
    if not text.startswith(quote, begin):
        raise unreadable()
    return begin + len(quote)


def _with_values(code: Code, answers: Sequence[RenderedText]) -> Code:
    """Return `code` with what values of each type show."""
    quote = code.quote.text if code.quote else ""
    begin = f"{code.begin}{KEYS[1]}{code.assign}"
    spelled = [
        answer.text[answer.end_of(FIRST.name) :].removeprefix(begin)
        for value, answer in zip(VALUES, answers, strict=True)
        if not isinstance(value, str)
    ]
    return replace(
        code,
        quotes_all=bool(quote) and all(text.startswith(quote) for text in spelled),
        is_python=any(text.removeprefix(quote).startswith("True") for text in spelled),
    )


def _is_same(code: Code, answer: RenderedText, value: object) -> bool:
    """Return whether the only argument reads as `value`, or is that string written verbatim."""
    quote = code.quote.text if code.quote else ""
    if isinstance(value, str):
        whole = f"{code.begin}{KEYS[1]}{code.assign}{quote}{value}{quote}{code.end}"
        if answer.text.startswith(whole, answer.end_of(FIRST.name)):
            return True
    found = _read(code, answer)
    if found.keys() != {KEYS[1]}:
        return False
    read = found[KEYS[1]]
    if code.quotes_all and not isinstance(value, str):
        read = value_of(Given(KEYS[1], str(read), None), None, is_python=True)
    return json.dumps(read) == json.dumps(value)  # in Python, True == 1


def _read(code: Code, answer: RenderedText) -> dict[str, object]:
    """Return the arguments of the call."""
    begin = answer.end_of(FIRST.name)
    reader = CodeReader(code, (), begin)
    try:
        is_whole = reader.find(answer.text) is not None
    except ValueError:
        is_whole = False
    if not is_whole or not answer.text.startswith(code.begin.strip(), begin):
        raise unreadable()
    return reader.found
