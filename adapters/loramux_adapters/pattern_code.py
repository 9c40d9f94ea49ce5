"""Compiler of regular expressions for module names.

Python's own parser gives the syntax tree. A program has an instruction for each part of it, and
copies of those for counted repetitions. `pattern.py` runs it.
"""

import re
from collections.abc import Iterable
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, TypeAlias, cast

MAX_LENGTH = 4096
"""Characters of an expression."""
MAX_PARTS = 10_000
"""Parts of an expression, with counted repetitions expanded."""
MAX_LEVELS = 50
"""Nested parentheses."""
MAX_STEPS = 4_000_000
"""Steps for all expressions of one config: about a second."""
_STEPS_OF_PART = 20

TEXT, ONE, MANY, SPLIT, PLACE, LOOK, DONE = range(7)
"""Opcodes; see `Instruction`."""

Item: TypeAlias = Any
"""A node of the syntax tree of Python's parser, which has no public type."""
Instruction: TypeAlias = tuple[int, Any, int]
"""(opcode, argument, index of the next instruction).

`TEXT` matches a string, `ONE` one character of a set. `MANY` repeats a set; its argument is the
set, whether it is lazy, and the first characters of what follows, None if unknown. `SPLIT` tries
several instructions in order. `PLACE` asserts a position, such as the end. `LOOK` is a lookaround;
its argument is the first instruction of a subprogram, how many characters back that begins, and
whether it has to match. `DONE` accepts.
"""

_ASCII = frozenset(map(chr, range(128)))
_DIGITS = frozenset("0123456789")
_SPACES = frozenset(each for each in _ASCII if each.isspace())
WORDS = frozenset(each for each in _ASCII if each.isalnum()) | {"_"}
_CLASSES = {
    _constants.CATEGORY_DIGIT: _DIGITS,
    _constants.CATEGORY_NOT_DIGIT: _ASCII - _DIGITS,
    _constants.CATEGORY_SPACE: _SPACES,
    _constants.CATEGORY_NOT_SPACE: _ASCII - _SPACES,
    _constants.CATEGORY_WORD: WORDS,
    _constants.CATEGORY_NOT_WORD: _ASCII - WORDS,
}
BEGIN, END, LAST, BORDER, INSIDE = range(5)
"""Positions: start, end, end or before a final line break, word boundary, no word boundary."""
_PLACES = {
    _constants.AT_BEGINNING: BEGIN,
    _constants.AT_BEGINNING_STRING: BEGIN,
    _constants.AT_END: LAST,
    _constants.AT_END_STRING: END,
    _constants.AT_BOUNDARY: BORDER,
    _constants.AT_NON_BOUNDARY: INSIDE,
}
_SIGNS = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)
_REFUSED = {
    _constants.GROUPREF: "a backreference (\\1)",
    _constants.GROUPREF_EXISTS: "a conditional, (?(1)…)",
    _constants.ATOMIC_GROUP: "(?>…)",
    _constants.POSSESSIVE_REPEAT: "*+, ++, ?+ or {…}+",
}
_FLAGS = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE


class Steps:
    """The remaining step budget of the expressions of one config."""

    def __init__(self) -> None:
        self.left = MAX_STEPS


class RefusedPatternError(ValueError):
    """Raised for an unsupported expression; the message says why."""


class Program:
    """The compiled instructions of one expression; `start` is the first to run."""

    def __init__(self, text: str, steps: Steps, *, ending: str = "") -> None:
        """Compile `text`.

        Args:
            text: The expression.
            steps: The step budget of the config; compiling takes some of it.
            ending: Name of a group, if the end of the match has to be Python's: the expression must
                end with this group and one more part.

        Raises:
            RefusedPatternError: It is not an expression, or has an unsupported part.
        """
        if len(text) > MAX_LENGTH:
            raise RefusedPatternError(f"it has {len(text)} characters; the limit is {MAX_LENGTH}")
        try:
            parsed = _parser.parse(text)
        except (re.error, ValueError, OverflowError, FutureWarning) as error:
            raise RefusedPatternError(f"it is not a regular expression: {error}") from None
        except RecursionError:
            raise RefusedPatternError(f"it is nested more than {MAX_LEVELS} levels deep") from None
        self._steps = steps
        self._is_ordered = bool(ending)
        if ending and not _ends_with(parsed, ending):
            raise RefusedPatternError("it has alternatives without parentheses around them")
        self._num_parts = 0
        self.code: list[Instruction] = [(DONE, None, 0)]
        self._firsts: list[frozenset[str] | None] = [None]
        self.start = self._sequence(parsed, 0, parsed.state.flags, 0)

    def _add(self, kind: int, argument: Item, then: int) -> int:
        self.code.append((kind, argument, then))
        self._firsts.append(self._first(kind, argument, then))
        return len(self.code) - 1

    def _first(self, kind: int, argument: Item, then: int) -> frozenset[str] | None:
        """Return the characters that an instruction can match first; None if unknown."""
        if kind == TEXT:
            return frozenset(argument[0])
        if kind == ONE:
            return cast(frozenset[str], argument)
        after = [self._firsts[each] for each in argument] if kind == SPLIT and argument else [None]
        if kind == MANY:
            after = [argument[0], self._firsts[then]]
        known = [each for each in after if each is not None]
        return frozenset().union(*known) if len(known) == len(after) else None

    def _count(self) -> None:
        self._num_parts += 1
        self._steps.left -= _STEPS_OF_PART
        if self._num_parts > MAX_PARTS:
            raise RefusedPatternError(
                f"with repetitions expanded it has more than {MAX_PARTS} parts"
            )
        if self._steps.left < 0:
            raise RefusedPatternError(too_long())

    def _sequence(self, items: Iterable[Item], then: int, flags: int, level: int) -> int:
        """Compile `items`, followed by instruction `then`; return the first instruction."""
        if level > MAX_LEVELS:
            raise RefusedPatternError(f"it is nested more than {MAX_LEVELS} levels deep")
        if flags & ~_FLAGS:
            raise RefusedPatternError("only the flags (?i), (?s) and (?x) are supported")
        self._count()
        literal = ""
        for kind, argument in reversed(list(items)):
            self._count()
            if kind is _constants.LITERAL and not flags & re.IGNORECASE:
                literal = chr(argument) + literal
                continue
            if literal:
                then, literal = self._add(TEXT, literal, then), ""
            then = self._item(kind, argument, then, flags, level + 1)
        return self._add(TEXT, literal, then) if literal else then

    def _item(self, kind: Item, argument: Item, then: int, flags: int, level: int) -> int:
        if kind in _SIGNS:
            return self._add(ONE, self._signs(kind, argument, flags), then)
        if kind is _constants.BRANCH:
            branches = [self._sequence(each, then, flags, level) for each in argument[1]]
            return self._add(SPLIT, tuple(branches), 0)
        if kind is _constants.SUBPATTERN:
            _, more, less, items = argument
            return self._sequence(items, then, (flags | more) & ~less, level)
        if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            is_lazy = kind is _constants.MIN_REPEAT
            low, high, body = argument
            return self._repeat(low, high, body, then, flags, level, is_lazy=is_lazy)
        if kind in (_constants.ASSERT, _constants.ASSERT_NOT):
            direction, items = argument
            return self._look(items, direction < 0, kind is _constants.ASSERT, then, flags, level)
        if kind is _constants.AT:
            return self._add(PLACE, _PLACES[argument], then)
        if kind is _constants.FAILURE:
            return self._add(SPLIT, (), 0)
        raise RefusedPatternError(f"{_REFUSED.get(kind, kind)} is not supported")

    def _repeat(
        self, low: int, high: Item, body: Item, then: int, flags: int, level: int, *, is_lazy: bool
    ) -> int:
        if self._is_ordered and not body.getwidth()[0]:
            raise RefusedPatternError(
                "it repeats a part that may be empty, so its end is ambiguous"
            )

        def either(inner: int, other: int) -> tuple[int, int]:
            return (other, inner) if is_lazy else (inner, other)

        if high is _constants.MAXREPEAT and len(body) == 1 and body[0][0] in _SIGNS:
            # Without the set of first characters, positions are tried one by one, in order.
            first = None if self._is_ordered else self._firsts[then]
            then = self._add(
                MANY, (self._signs(body[0][0], body[0][1], flags), is_lazy, first), then
            )
        elif high is _constants.MAXREPEAT:
            loop = self._add(SPLIT, (), 0)
            inner = self._sequence(body, loop, flags, level)
            self.code[loop] = (SPLIT, either(inner, then), 0)
            then = loop
        else:
            end = then
            for _ in range(high - low):
                inner = self._sequence(body, then, flags, level)
                then = self._add(SPLIT, either(inner, end), 0)
        for _ in range(low):
            then = self._sequence(body, then, flags, level)
        return then

    def _look(
        self, items: Item, is_behind: bool, is_wanted: bool, then: int, flags: int, level: int
    ) -> int:
        least, most = items.getwidth()
        if is_behind and least != most:
            raise RefusedPatternError(
                "it is not a regular expression: a look-behind has variable width"
            )
        start = self._sequence(items, 0, flags, level)
        return self._add(LOOK, (start, int(least) if is_behind else 0, is_wanted), then)

    def _signs(self, kind: Item, argument: Item, flags: int) -> frozenset[str]:
        """Return the ASCII characters that a node of the syntax tree matches."""
        if kind is _constants.ANY:
            return _ASCII if flags & re.DOTALL else _ASCII - {"\n"}
        items = argument if kind is _constants.IN else [(_constants.LITERAL, argument)]
        is_negative = kind is _constants.NOT_LITERAL
        found: set[str] = set()
        for each, value in items:
            self._count()
            if each is _constants.NEGATE:
                is_negative = True
            elif each is _constants.CATEGORY:
                found |= _CLASSES[value]
            else:
                low, high = value if each is _constants.RANGE else (value, value)
                if flags & re.IGNORECASE and high > 127:
                    raise RefusedPatternError("with (?i) only ASCII is supported")
                found.update(map(chr, range(low, min(high, 127) + 1)))
        if flags & re.IGNORECASE:
            found |= {other for each in found for other in (each.lower(), each.upper())}
        return _ASCII - found if is_negative else frozenset(found)


def _ends_with(parsed: Item, group: str) -> bool:
    """Return whether the last part but one of the expression is `group`."""
    if len(parsed) < 2:
        return False
    kind, argument = parsed[-2]
    return kind is _constants.SUBPATTERN and argument[0] == parsed.state.groupdict[group]


def too_long() -> str:
    """Return the reason for refusing a config whose expressions take too many steps."""
    return (
        "matching the expressions of this config against the module names takes more than "
        f"{MAX_STEPS} steps"
    )
