"""JSON from strangers: no duplicate keys, no NaN, no depth that exhausts the stack."""

import json
from typing import NoReturn


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {ascii(key)[:80]} appears twice")
        result[key] = value
    return result


def parse_object(raw: bytes, what: str) -> dict[str, object]:
    """Return the JSON object in `raw`.

    Raises:
        ValueError: `raw` is not UTF-8, not JSON, not an object, or has a key twice in an object.
            The message begins with `what`.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def depth(value: object) -> int:
    """Return how deep `value` nests: 0 for a scalar, 1 for a flat object or list."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0
