"""JSON from untrusted sources: nothing that parsers disagree on, and bounded depth."""

import json
import math
import sys
from typing import NamedTuple, NoReturn

MAX_DEPTH = 16
_MAX_INTEGER = int(sys.float_info.max)
_MAX_DIGITS = len(str(_MAX_INTEGER))


class _OutOfRange(NamedTuple):
    """Replaces a number, and the objects around it, until all their keys are known."""

    literal: str
    path: str = ""
    """Keys of the objects, the outermost first, each with a dot before it."""


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _integer(literal: str) -> int | _OutOfRange:
    # Python reads it as an integer, safetensors as a float.
    if literal == "-0":
        raise ValueError("-0 is not an integer")
    # Other parsers read large integers as floats.
    if len(literal.lstrip("-")) > _MAX_DIGITS or abs(int(literal)) > _MAX_INTEGER:
        return _OutOfRange(literal)
    return int(literal)


def _finite(literal: str) -> float | _OutOfRange:
    value = float(literal)
    return value if math.isfinite(value) else _OutOfRange(literal)


def _out_of_range(value: object) -> _OutOfRange | None:
    """Return the first number in `value` that is out of range, not looking into objects."""
    if isinstance(value, list):
        return next(filter(None, map(_out_of_range, value)), None)
    return value if isinstance(value, _OutOfRange) else None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object] | _OutOfRange:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {ascii(key)[:80]} appears twice")
        if number := _out_of_range(value):
            return _OutOfRange(number.literal, f".{key}{number.path}")
        result[key] = value
    return result


def parse_object(raw: bytes, what: str) -> dict[str, object]:
    """Parse the JSON object in `raw`.

    Raises:
        ValueError: `raw` is not UTF-8, not JSON, not an object, nested deeper than MAX_DEPTH, or
            has a duplicate key, a number too large for a float, or an unpaired surrogate. The
            message begins with `what`.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if isinstance(value, _OutOfRange) and value.path:
        path = ascii(value.path[1:])[:160]
        literal = value.literal[:80]
        raise ValueError(f"{what} is not valid JSON: {path} is {literal}, which is out of range")
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    if depth(value) > MAX_DEPTH:
        raise ValueError(f"{what} is nested too deeply")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair") from None
    return value


def depth(value: object) -> int:
    """Return the nesting depth of `value`: 0 for a scalar, 1 for a flat object or list."""
    deepest = 0
    level = [value]
    # Iterative, because recursion would overflow the stack on deep input.
    while level := [entry for entry in level if isinstance(entry, dict | list)]:
        deepest += 1
        level = [
            entry
            for outer in level
            for entry in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return deepest
