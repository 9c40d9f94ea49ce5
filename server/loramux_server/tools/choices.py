"""Splitting the schema of a tool into what each of its arguments may be."""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from loramux_adapters.errors import shown
from loramux_server.tools.schemas import (
    ANNOTATIONS,
    UnknownSchemaError,
    kind_of,
    kinds_of,
    values_of,
)

NAMED: dict[str, list[bool | None]] = {"boolean": [True, False], "null": [None]}
"""JSON type -> its values, for types that Python spells differently."""
_KINDS = NAMED.keys() | {"array", "object", "integer", "number", "string"}
_TELLING = {"properties": "object", "items": "array"}
"""Keywords that imply a type if none is given."""
_KNOWN = ANNOTATIONS | {
    "type", "properties", "required", "additionalProperties", "$defs", "definitions",
}  # fmt: skip


class Arguments(NamedTuple):
    """The arguments of a tool."""

    properties: dict[str, Any]
    """Name -> schema, in the order in which they are written."""
    required: Set[str]


def arguments_in(schema: dict[str, Any]) -> Arguments | None:
    """Return the arguments that meet `schema`, an object's; None for any arguments.

    Raises:
        UnknownSchemaError: It cannot be enforced where arguments are written one by one.
    """
    if unknown := sorted(schema.keys() - _KNOWN):
        raise UnknownSchemaError(f"uses {unknown[0]!r}")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise UnknownSchemaError("has 'properties' that is not an object")
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise UnknownSchemaError(
            f"has 'required' that is {shown(required)}, which is not a list of names"
        )
    if not properties and not required and (more := schema.get("additionalProperties", True)):
        if more is not True:
            raise UnknownSchemaError("has 'additionalProperties' that is a schema")
        return None
    properties = properties | {key: True for key in required if key not in properties}
    return Arguments(
        {key: each for key, each in properties.items() if each is not False or key in required},
        frozenset(required),
    )


class Choice(NamedTuple):
    """What a parameter may be: one of `words`, or a match of one of the schemas."""

    words: list[str]
    """Strings of `const` and `enum`."""
    strings: list[dict[str, Any]]
    """Schemas of strings."""
    others: list[dict[str, Any]]
    """Schemas of other values."""


def split(alternatives: Sequence[dict[str, Any]]) -> Choice:
    """Return what a value that meets one of some schemas may be.

    Raises:
        UnknownSchemaError: A schema is not understood.
    """
    choice = Choice([], [], [])
    for each in alternatives:
        keys = each.keys() - ANNOTATIONS
        if "const" in keys or "enum" in keys:
            if unknown := sorted(keys - {"type", "const", "enum"}):
                raise UnknownSchemaError(f"uses {unknown[0]!r} with 'const' or 'enum'")
            if not isinstance(each.get("enum", []), list):
                raise UnknownSchemaError(
                    f"has 'enum' that is {shown(each['enum'])}, which is not a list"
                )
            values = values_of(each) or []
            choice.words.extend(value for value in values if isinstance(value, str))
            for is_named in (True, False):  # these may be written differently
                rest = [
                    value for value in values
                    if not isinstance(value, str) and (kind_of(value) in NAMED) == is_named
                ]  # fmt: skip
                if rest:
                    choice.others.append({"enum": rest})
            continue
        kinds = kinds_of(each)
        if not keys:
            kinds = frozenset({"string"})  # any text, which is read as the type that it looks like
        elif kinds is None:
            kinds = frozenset(kind for key, kind in _TELLING.items() if key in keys)
        if not kinds:
            raise UnknownSchemaError("has no type")
        if unknown := sorted(kinds - _KINDS):
            raise UnknownSchemaError(f"has the unknown type {unknown[0]!r}")
        if "string" in kinds:
            choice.strings.append(each)
        if rest := sorted(kinds - {"string"}):
            choice.others.append(each | {"type": rest if len(rest) > 1 else rest[0]})
    return choice


def named_values(schema: dict[str, Any]) -> list[bool | None]:
    """Return the values that meet a schema that has only types of NAMED."""
    values: list[bool | None] = schema.get("enum") or [
        each for kind in sorted(kinds_of(schema) or ()) for each in NAMED[kind]
    ]
    return values
