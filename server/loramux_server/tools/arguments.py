"""Objects of JSON from strangers: what arguments, schemas and variables may be."""

import re
from typing import Any

import msgspec

from loramux_adapters.errors import shown
from loramux_adapters.strict_json import depth

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Of a tool."""
MAX_DEPTH = 64
"""How deep arrays and objects may lie in each other."""
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


def parse_object(text: str) -> dict[str, Any]:
    """Return the object that `text` is.

    Raises:
        ValueError: It is none, or holds what not everybody can read; the message goes on after the
            name of what it is.
    """
    try:
        found = msgspec.json.decode(text)
        is_shallow = depth(found) <= MAX_DEPTH
    except RecursionError:
        is_shallow = False
    except ValueError as error:
        raise ValueError(
            f"is {shown(text)}, which is no JSON: {error}; expected a JSON object"
        ) from None
    if not is_shallow:
        raise ValueError(f"is nested deeper than {MAX_DEPTH}; expected at most that")
    if not isinstance(found, dict):
        raise ValueError(f"is {shown(text)}; expected a JSON object")
    if not is_small(found):
        raise ValueError("holds an integer of more than 64 bits; expected none")
    return found


def is_small(value: object) -> bool:
    """Return whether no integer in a value of JSON is larger than others can read."""
    if isinstance(value, dict):
        return all(map(is_small, value.values()))
    if isinstance(value, list):
        return all(map(is_small, value))
    return not isinstance(value, int) or _LEAST <= value <= _MOST
