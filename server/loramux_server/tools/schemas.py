"""What the JSON schema of a parameter says of the kinds of its values."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

MAX_REFERENCES = 16
"""How far a schema may refer from one part of it to the next."""
ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "$schema", "$id",
})  # fmt: skip
"""Keywords that say nothing of what meets a schema."""
_ALL = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


class UnknownSchemaError(ValueError):
    """It cannot be told what meets a schema; says which part of it."""


def alternatives(
    schema: object, root: dict[str, Any], *, is_exact: bool = False, depth: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield the schemas of which a value of a parameter has to meet one.

    None of them refers to another one or is a union as a whole.

    Args:
        schema: That of the parameter.
        root: That of the tool, in which it stands.
        is_exact: Whether to demand that no value can meet two of which it has to meet just one.
        depth: How many schemas lie around it.

    Raises:
        UnknownSchemaError: That cannot be told.
    """
    if depth > MAX_REFERENCES:
        raise UnknownSchemaError(f"refers more than {MAX_REFERENCES} times from part to part")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UnknownSchemaError("has no schema that anything could meet")
    unions = [key for key in ("$ref", "anyOf", "oneOf", "allOf") if key in schema]
    if not unions:
        yield schema
        return
    key = unions[0]
    if others := sorted(schema.keys() - ANNOTATIONS - {key}):
        raise UnknownSchemaError(f"has {others[0]!r} beside {key!r}")
    inner = [_referred(schema[key], root)] if key == "$ref" else schema[key]
    if not isinstance(inner, list) or (key == "allOf" and len(inner) != 1):
        raise UnknownSchemaError(f"has {key!r} that is not understood")
    found = [list(alternatives(each, root, is_exact=is_exact, depth=depth + 1)) for each in inner]
    if key == "oneOf" and is_exact and not _are_disjoint(found):
        raise UnknownSchemaError("has 'oneOf' with two of the same type")
    yield from chain.from_iterable(found)


def _are_disjoint(unions: Sequence[Sequence[dict[str, Any]]]) -> bool:
    """Return whether no type of JSON is in two of `unions`."""
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
    """Return the JSON types of what meets an alternative; None for any."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return frozenset(map(kind_of, values))
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return frozenset({kinds})
    if isinstance(kinds, list):
        return frozenset(kind for kind in kinds if isinstance(kind, str))
    return None


def kinds_within(schema: object, root: dict[str, Any]) -> frozenset[str] | None:
    """Return the JSON types of what meets `schema`, a part of `root`; None if that is not known."""
    try:
        each = [kinds_of(alternative) for alternative in alternatives(schema, root)]
    except UnknownSchemaError:
        return None
    known = [kinds for kinds in each if kinds is not None]
    return frozenset().union(*known) if len(known) == len(each) else None


def kind_of(value: object) -> str:
    """Return the JSON type of a value."""
    if value is None:
        return "null"
    # A boolean is an integer to Python.
    for kind, its in (("boolean", bool), ("string", str), ("integer", int), ("number", float),
                      ("array", list)):  # fmt: skip
        if isinstance(value, its):
            return kind
    return "object"


def _referred(reference: object, root: dict[str, Any]) -> object:
    """Return the part of `root` that `reference` means."""
    found: object = root
    path = str(reference)
    if not path.startswith("#"):
        raise UnknownSchemaError(f"refers to {path!r}, which is no part of it")
    for step in path[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            raise UnknownSchemaError(f"refers to {path!r}, which is no part of it")
        found = found[key]
    return found
