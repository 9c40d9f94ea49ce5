"""Validating untrusted JSON objects: arguments, schemas and variables."""

import re
from typing import Any

import msgspec

from loramux_adapters.errors import shown
from loramux_adapters.strict_json import depth

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""The name of a tool."""
MAX_DEPTH = 64
"""Deepest nesting of arrays and objects."""
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


def parse_object(text: str) -> dict[str, Any]:
    """Return `text` parsed as a JSON object.

    Raises:
        ValueError: It is none, is nested too deeply, or has an integer of more than 64 bits; the
            message is to follow the name of the field.
    """
    try:
        found = msgspec.json.decode(text)
        is_shallow = depth(found) <= MAX_DEPTH
    except RecursionError:
        is_shallow = False
    except ValueError as error:
        raise ValueError(
            f"is {shown(text)}, which is not valid JSON: {error}; expected a JSON object"
        ) from None
    if not is_shallow:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels; expected at most that")
    if not isinstance(found, dict):
        raise ValueError(f"is {shown(text)}; expected a JSON object")
    if not is_small(found):
        raise ValueError("has an integer of more than 64 bits; expected none")
    return found


def is_small(value: object) -> bool:
    """Return whether every integer in a JSON value fits a signed or unsigned 64-bit integer."""
    if isinstance(value, dict):
        return all(map(is_small, value.values()))
    if isinstance(value, list):
        return all(map(is_small, value))
    return not isinstance(value, int) or _LEAST <= value <= _MOST
