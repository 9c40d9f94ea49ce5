"""The JSON types and alternatives in the JSON schema of a parameter."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any
from urllib.parse import unquote

from loramux_adapters.errors import shown

MAX_REFERENCES = 16
"""Deepest nesting of references and unions."""
MAX_SCHEMAS = 1024
"""Most schemas in all parameters, each counted as often as it is referred to."""
_LENGTH = 8
"""Values of a list that count as one more schema."""
_MAX_REFERENCE = 1024
"""Most characters of a reference."""
ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "$schema", "$id",
})  # fmt: skip
"""Keywords without effect on validation."""
_DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/]*)")
_ALL = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


class UnknownSchemaError(ValueError):
    """A schema is not understood or cannot be enforced; the message says why."""


class Allowance:
    """A budget of schemas to visit.

    Chains of definitions that each refer twice to the next expand a few hundred bytes to billions.
    """

    def __init__(self) -> None:
        """Allow MAX_SCHEMAS."""
        self._num_left = MAX_SCHEMAS

    def count(self, schema: dict[str, Any]) -> None:
        """Count `schema`, more than once if it has a long list of values or types.

        Raises:
            UnknownSchemaError: The budget is used up.
        """
        lists = [each for key in ("enum", "type") if isinstance(each := schema.get(key), list)]
        self._num_left -= 1 + sum(map(len, lists)) // _LENGTH
        if self._num_left < 0:
            raise UnknownSchemaError(
                f"brings the schemas of parameters to more than {MAX_SCHEMAS}, each counted as "
                "often as it is referenced"
            )


class ToolSchema:
    """The schema of a tool."""

    def __init__(self, root: dict[str, Any], allowance: Allowance) -> None:
        """Visit at most `allowance` schemas of `root`, the schema of the whole tool."""
        self.root = root
        self._allowance = allowance

    def alternatives(self, schema: object, *, is_exact: bool = False) -> list[dict[str, Any]]:
        """Return the schemas of which a value of a parameter has to meet one.

        References and unions at their top level are resolved.

        Args:
            schema: The schema of the parameter.
            is_exact: Whether to demand that the alternatives of a `oneOf` have no type in common.

        Raises:
            UnknownSchemaError: It is not understood, or the budget is used up.
        """
        return self._within(schema, is_exact=is_exact, depth=0)

    def kinds(self, schema: object) -> frozenset[str] | None:
        """Return the JSON types that `schema`, a part of `root`, allows; None if not known."""
        try:
            return kinds_of_any(self.alternatives(schema))
        except UnknownSchemaError:
            return None

    def _within(self, schema: object, *, is_exact: bool, depth: int) -> list[dict[str, Any]]:
        """Return the alternatives of `schema`, which is nested in `depth` others."""
        if depth > MAX_REFERENCES:
            raise UnknownSchemaError(f"has references nested more than {MAX_REFERENCES} deep")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise UnknownSchemaError("has a schema that matches nothing")
        self._allowance.count(schema)
        key = next((key for key in ("$ref", "anyOf", "oneOf", "allOf") if key in schema), None)
        if key is None:
            return [schema]
        other = next((other for other in schema if other not in ANNOTATIONS | {key}), None)
        if other is not None:
            raise UnknownSchemaError(f"uses {other!r} with {key!r}")
        inner = [_referred(schema[key], self.root)] if key == "$ref" else schema[key]
        if not isinstance(inner, list) or (key == "allOf" and len(inner) != 1):
            raise UnknownSchemaError(f"has {key!r} that is not supported")
        found = [self._within(each, is_exact=is_exact, depth=depth + 1) for each in inner]
        if key == "oneOf" and is_exact and not _are_disjoint(found):
            raise UnknownSchemaError("has 'oneOf' with two schemas of the same type")
        return list(chain.from_iterable(found))


def _are_disjoint(unions: Sequence[Sequence[dict[str, Any]]]) -> bool:
    """Return whether no JSON type is in two of `unions`."""
    seen: set[str] = set()
    for union in unions:
        kinds: set[str] = set()
        for each in union:
            kinds |= kinds_of(each) or _ALL
        if "number" in kinds:
            kinds.add("integer")
        if not seen.isdisjoint(kinds):
            return False
        seen |= kinds
    return True


def kinds_of(schema: dict[str, Any]) -> frozenset[str] | None:
    """Return the JSON types that an alternative allows; None for any."""
    values = values_of(schema)
    return _types(schema) if values is None else frozenset(map(kind_of, values))


def values_of(schema: dict[str, Any]) -> list[Any] | None:
    """Return the values that `const` and `enum` both allow, of the types in `type`.

    None if there is neither, which allows all values of those types.
    """
    values = schema.get("enum")
    if not isinstance(values, list):
        values = None
    if "const" in schema:
        const = schema["const"]
        is_allowed = values is None or any(_is_same(const, each) for each in values)
        values = [const] if is_allowed else []
    kinds = _types(schema)
    if values is None or not kinds or not kinds <= _ALL:
        return values
    return [each for each in values if _is_of(each, kinds)]


def _is_same(one: object, other: object) -> bool:
    """Return whether two values are the same in JSON; in Python, True equals 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _is_of(value: object, kinds: frozenset[str]) -> bool:
    """Return whether a value has one of some JSON types; 1 is a number, and 1.0 an integer."""
    kind = kind_of(value)
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return True
    return kind in kinds or (kind == "integer" and "number" in kinds)


def _types(schema: dict[str, Any]) -> frozenset[str] | None:
    """Return the JSON types in `type`; None if it has none."""
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return frozenset({kinds})
    if isinstance(kinds, list):
        return frozenset(kind for kind in kinds if isinstance(kind, str))
    return None


def kinds_of_any(schemas: Iterable[dict[str, Any]]) -> frozenset[str] | None:
    """Return the JSON types that some alternatives allow together; None for any."""
    kinds: frozenset[str] = frozenset()
    for each in map(kinds_of, schemas):
        if each is None:
            return None
        kinds |= each
    return kinds


def kind_of(value: object) -> str:
    """Return the JSON type of a value."""
    if value is None:
        return "null"
    # In Python, bool is a subclass of int.
    for kind, its in (("boolean", bool), ("string", str), ("integer", int), ("number", float),
                      ("array", list)):  # fmt: skip
        if isinstance(value, its):
            return kind
    return "object"


def _referred(reference: object, root: dict[str, Any]) -> object:
    """Return the part of `root` that `reference`, a JSON pointer as `#/…`, refers to."""
    found: object = root
    path = reference if isinstance(reference, str) and len(reference) <= _MAX_REFERENCE else ""
    if not path.startswith("#"):
        raise UnknownSchemaError(f"refers to {shown(reference)}, which it does not contain")
    for step in path[1:].split("/")[1:]:
        key = _unescaped(step)
        if not isinstance(found, dict) or key not in found:
            raise UnknownSchemaError(f"refers to {path!r}, which it does not contain")
        found = found[key]
    return found


def definitions_of(schema: object, root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the definitions of `root` that a part of it refers to, directly or indirectly.

    They are in `$defs` and `definitions`, as in `root`.
    """
    found: dict[str, dict[str, Any]] = {}
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        parts += part.values()
        reference = part.get("$ref")
        if not isinstance(reference, str) or not (step := _DEFINITION.match(reference)):
            continue
        group, definitions = step[1], root.get(step[1])
        if not isinstance(definitions, dict):
            continue
        for name in {_unescaped(step[2]), _unescaped(unquote(step[2]))} & definitions.keys():
            if name not in found.setdefault(group, {}):
                found[group][name] = definitions[name]
                parts.append(definitions[name])
    return found


def _unescaped(step: str) -> str:
    """Return the key of an escaped step of a JSON pointer (RFC 6901)."""
    return step.replace("~1", "/").replace("~0", "~")
