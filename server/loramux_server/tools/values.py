"""Converting the text of parameters to values of the types in the tool's schema."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec

from loramux_adapters.strict_json import depth
from loramux_server.chat.messages import Tool
from loramux_server.tools.arguments import MAX_DEPTH, is_small
from loramux_server.tools.escapes import unescaped
from loramux_server.tools.parameter_reader import Given
from loramux_server.tools.schemas import Allowance, ToolSchema, kind_of

_STRING = frozenset({"string"})
_NUMBERS = frozenset({"integer", "number"})
_LITERAL = re.compile(
    r"""'(?:[^'\\]|\\.)*(')?|"(?:[^"\\]|\\.)*(")?|\b(?:True|False|None)\b""", re.DOTALL
)
"""A Python string, possibly unterminated, or a Python name that JSON spells differently."""
_NAMES = {"True": "true", "False": "false", "None": "null"}


class _NoValueError(Exception):
    """A text cannot be read as anything but a string."""


def arguments_of(given: Sequence[Given], tool: Tool | None, *, is_python: bool) -> dict[str, Any]:
    """Return the arguments of a call.

    Args:
        given: Its parameters; of several with the same name, the last one counts.
        tool: The tool; None if it is not known.
        is_python: Whether the template spells values other than strings as Python does.
    """
    kinds = _kinds(tool)
    return {
        name: value_of(each, kinds(name), is_python=is_python)
        for name, each in {each.name: each for each in given}.items()
    }


def unquoted(arguments: dict[str, Any], tool: Tool | None) -> dict[str, Any]:
    """Return the arguments of a call whose template quotes all values.

    Args:
        arguments: The arguments as read; a quoted value stays a string if the schema allows that.
        tool: The tool; None if it is not known.
    """
    kinds = _kinds(tool)
    return {
        name: value
        if not isinstance(value, str) or "string" in (kinds(name) or ())
        else value_of(Given(name, value, None), kinds(name), is_python=True)
        for name, value in arguments.items()
    }


def _kinds(tool: Tool | None) -> Callable[[str], frozenset[str] | None]:
    """Return a function from the name of a parameter to its JSON types; None if not known."""
    root = (tool.parameters if tool else None) or {}
    properties = root.get("properties")
    schemas = properties if isinstance(properties, dict) else {}
    schema = ToolSchema(root, Allowance())
    return cache(lambda name: schema.kinds(schemas.get(name, True)))


def value_of(given: Given, kinds: frozenset[str] | None, *, is_python: bool) -> Any:  # noqa: ANN401
    """Return the value of a parameter: a string unless its text reads as another allowed type.

    Args:
        given: The parameter.
        kinds: The JSON types that it may have; None if not known.
        is_python: As for `arguments_of`.
    """
    if given.is_string or (given.is_string is None and kinds == _STRING):
        return given.text
    may_be_string = given.is_string is None and (kinds is None or "string" in kinds)
    try:
        value = _decoded(given.text, is_python=is_python or not may_be_string)
    except _NoValueError:
        return given.text
    if may_be_string and (isinstance(value, str) or not _is_of(value, kinds)):
        return given.text
    return value


def _is_of(value: object, kinds: frozenset[str] | None) -> bool:
    kind = kind_of(value)
    return kinds is None or kind in kinds or (kind in _NUMBERS and "number" in kinds)


def _decoded(text: str, *, is_python: bool) -> Any:  # noqa: ANN401 - JSON
    """Return the value of `text` as JSON, or else, if `is_python`, as Python.

    Raises:
        _NoValueError: It is neither, or exceeds the limits of arguments.
    """
    try:
        return _readable(text)
    except (ValueError, RecursionError):
        if not is_python:
            raise _NoValueError from None
    try:
        return _readable(_LITERAL.sub(_as_json, text))
    except (ValueError, RecursionError):
        raise _NoValueError from None


def _readable(text: str) -> Any:  # noqa: ANN401 - JSON
    """Return the value of `text` as JSON, within the limits of arguments."""
    value = msgspec.json.decode(text)
    # `>=`, because the object of arguments adds one level.
    if depth(value) >= MAX_DEPTH or not is_small(value):
        raise ValueError("not a valid argument value")
    return value


def _as_json(found: re.Match[str]) -> str:
    literal = found[0]
    if found[1] or found[2]:
        return json.dumps(unescaped(literal[1:-1]))
    return _NAMES.get(literal, literal)
