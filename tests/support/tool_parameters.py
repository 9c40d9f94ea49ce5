"""A tool with parameters of each kind, and calls in which they are written one by one."""

from typing import Any

from loramux_server.chat.messages import Tool
from loramux_server.tools.syntax import joined
from tests.support.tool_syntaxes import SYNTAXES, matcher_of, written

NAMES = ["elements", "pairs", "typed", "marked"]
TRIP = Tool(
    "plan_trip",
    None,
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "days": {"type": "integer"},
            "ratio": {"type": "number"},
            "warm": {"type": "boolean"},
            "unit": {"enum": ["c", "f", "a b"]},
            "note": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
            "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}, "maxItems": 2},
            "more": {"type": "object", "properties": {"a": {"type": "integer"}},
                     "additionalProperties": False},
            "gone": {"type": "null"},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {"stop": {"type": "string", "maxLength": 20}},
    },
)  # fmt: skip
assert TRIP.parameters is not None
ORDER = list(TRIP.parameters["properties"])
CALLED: Any = {"city": "Oslo", "unit": "c"}
MATCHERS = {name: matcher_of(name, tools=[TRIP]) for name in NAMES}
"""What follows a form of calls of it."""


def call_in(name: str, *parameters: tuple[str, str]) -> str:
    """Return a call of the tool, in which parameters are written with these texts."""
    way = SYNTAXES[name].parameters
    assert way is not None
    opening, between, closing = map(joined, (way.opening, way.between, way.closing))
    texts = [f"{opening}{key}{between}{text}{closing}" for key, text in parameters]
    empty = written(name, [("plan_trip", {})])
    at = empty.index("plan_trip") + len("plan_trip" + joined(SYNTAXES[name].middle))
    return empty[:at] + "".join(texts) + empty[at:]


def reported(name: str, arguments: dict[str, Any]) -> str:
    """Return a call of the tool as a template writes it."""
    return written(name, [("plan_trip", arguments)])


def fanned(width: int, last: dict[str, Any]) -> dict[str, Any]:
    """Return `p0` to `p6`, each of them one of `width` that are the next, and `last` as `p7`."""
    parts: dict[str, Any] = {
        f"p{level}": {"anyOf": [{"$ref": f"#/$defs/p{level + 1}"}] * width} for level in range(7)
    }
    return parts | {"p7": last}
