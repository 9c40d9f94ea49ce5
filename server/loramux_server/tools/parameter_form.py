"""Arguments of a call whose parameters are written one by one, in a grammar."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from loramux_adapters.errors import shown
from loramux_server.forms.grammar import json_rule
from loramux_server.tools.parameter_reader import MAX_NAME, Given
from loramux_server.tools.rules import Rules
from loramux_server.tools.schemas import (
    ANNOTATIONS,
    Allowance,
    ToolSchema,
    UnknownSchemaError,
    definitions_of,
    kind_of,
    kinds_of,
    kinds_of_any,
)
from loramux_server.tools.symbols import literal, symbols
from loramux_server.tools.syntax import Parameters, ToolSyntax, marks_of
from loramux_server.tools.text_rules import text_rules
from loramux_server.tools.values import value_of

_KNOWN = ANNOTATIONS | {
    "type", "properties", "required", "additionalProperties", "$defs", "definitions",
}  # fmt: skip
_BEGINS = {"array": "[", "object": "{", "boolean": "tfTF", "null": "nN"} | dict.fromkeys(
    ("integer", "number"), "-0123456789"
)
"""JSON type -> the characters with which its values begin."""
_TELLING = {"properties": "object", "items": "array"}
"""Keywords that say of which type a value is, if nothing else does."""
_PYTHON: dict[str, list[bool | None]] = {"boolean": [True, False], "null": [None]}
"""JSON type -> its values, where Python writes them in another way."""


class ParameterForm:
    """Makes rules of schemas."""

    def __init__(self, syntax: ToolSyntax, parameters: Parameters, rules: Rules) -> None:
        """Add to `rules` those of calls that are written so."""
        self._rules = rules
        self._allowance = Allowance()
        self._syntax = syntax
        self._way = parameters
        self._begin, self._string, self._other, self._end = (
            symbols(syntax.ids, part)
            for part in (
                parameters.opening, parameters.between, parameters.between_others,
                parameters.closing,
            )
        )  # fmt: skip
        self._end_name, self._end_value = (
            marks_of(part)[0] for part in (parameters.between, parameters.closing)
        )

    def add(self, name: str, schema: dict[str, Any]) -> None:
        """Add the rules of arguments that meet `schema`, that of an object.

        One is `name`, in lower case, and the names of others begin with it.

        Raises:
            UnknownSchemaError: It cannot be kept where parameters are written one by one.
            LargeRulesError: The rules are too many.
        """
        if unknown := sorted(schema.keys() - _KNOWN):
            raise UnknownSchemaError(f"has {unknown[0]!r}")
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise UnknownSchemaError("has properties that are not understood")
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise UnknownSchemaError(
                f"has 'required' that is {shown(required)}, which is no list of names"
            )
        if not properties and not required and (more := schema.get("additionalProperties", True)):
            if more is not True:
                raise UnknownSchemaError("has a schema for all that is none of its properties")
            self.add_free(name)
            return
        required = dict.fromkeys(required)
        properties = properties | {key: True for key in required if key not in properties}
        parts = []
        whole = ToolSchema(schema, self._allowance)
        for number, (key, inner) in enumerate(properties.items()):
            if inner is False and key not in required:
                continue
            part = f"{name}_{number}"
            try:
                self._add_parameter(part, key, inner, whole)
            except UnknownSchemaError as error:
                raise UnknownSchemaError(f"has the parameter {key!r}, which {error}") from None
            parts.append(part if key in required else f"{part}?")
        self._rules.add(f"{name}: {' '.join(parts)}")

    def add_free(self, name: str) -> None:
        """Add the rules of any arguments, as `add` those that meet a schema."""
        between = " | ".join(dict.fromkeys([self._string, self._other]))
        key = f"{name.upper()}_KEY"
        self._rules.add(
            f"{name}: ({self._begin} {key} ({between}) {name}_any)*",
            f"{key}: /[A-Za-z0-9_.-]{{1,64}}/",
            *text_rules(self._syntax, self._way.closing, f"{name}_any", {}, ""),
        )

    def _add_parameter(self, name: str, key: str, schema: object, whole: ToolSchema) -> None:
        """Add the rules of one parameter, as `add` those of all."""
        if not 0 < len(key) <= MAX_NAME or key != key.strip() or self._end_name in key:
            raise UnknownSchemaError("has a name of which cannot be told where it ends")
        alternatives = whole.alternatives(schema, is_exact=True)
        choice, kinds = _split(alternatives), kinds_of_any(alternatives)
        strings = [self._word(key, word, kinds) for word in dict.fromkeys(choice.words)]
        # A text is read as what it looks like, if that may be. So it must not, where not all may.
        not_first = "" if self._way.tells_strings else "".join(
            dict.fromkeys(
                _BEGINS[kind] for each in choice.others if _is_bounded(each)
                for kind in sorted(kinds_of(each) or ())
            )
        )  # fmt: skip
        for number, each in enumerate(choice.strings):
            rule = f"{name}_text{number}"
            strings.append(rule)
            self._rules.add(*text_rules(self._syntax, self._way.closing, rule, each, not_first))
        others = []
        for number, each in enumerate(choice.others):
            rule = f"{name}_value{number}"
            others.append(f"{rule} {self._end}")
            self._rules.add(f"{rule}: {self._value(each, whole.root)}")
        ways = [(self._string, strings), (self._other, others)]
        if not self._way.tells_strings:
            ways = [(self._string, strings + others)]
        found = [f"{between} ({' | '.join(each)})" for between, each in ways if each]
        if not found:
            raise UnknownSchemaError("has no value")
        self._rules.add(f"{name}: {self._begin} {literal(key)} ({' | '.join(found)})")

    def _word(self, key: str, word: str, kinds: frozenset[str] | None) -> str:
        """Return what stands in a rule for one string, with what closes it."""
        given = Given(key, word, True if self._way.tells_strings else None)
        read = value_of(given, kinds, is_python=self._way.is_python)
        if self._end_value in word or read != word:
            raise UnknownSchemaError(f"has the value {word!r}, which would be read as another one")
        return f"{literal(word)} {self._end}"

    def _value(self, schema: dict[str, Any], root: dict[str, Any]) -> str:
        """Return what stands in a rule for what meets `schema` and is no string."""
        kinds = kinds_of(schema) or frozenset()
        if self._way.is_python and kinds <= _PYTHON.keys():
            values = schema.get("enum") or [
                each for kind in sorted(kinds) for each in _PYTHON[kind]
            ]
            return " | ".join(literal(str(value)) for value in values)
        return json_rule(schema | definitions_of(schema, root))


class _Choice(NamedTuple):
    """What a parameter may be."""

    words: list[str]
    """These strings."""
    strings: list[dict[str, Any]]
    """Strings that meet one of these schemas."""
    others: list[dict[str, Any]]
    """What meets one of these and is no string."""


def _split(alternatives: Sequence[dict[str, Any]]) -> _Choice:
    """Return what meets one of some schemas.

    Raises:
        UnknownSchemaError: That cannot be told.
    """
    choice = _Choice([], [], [])
    for each in alternatives:
        keys = each.keys() - ANNOTATIONS
        if "const" in keys or "enum" in keys:
            if unknown := sorted(keys - {"type", "const", "enum"}):
                raise UnknownSchemaError(f"has {unknown[0]!r} beside its values")
            values = [each["const"]] if "const" in keys else each["enum"]
            if not isinstance(values, list):
                raise UnknownSchemaError(f"has 'enum' that is {shown(values)}, which is no list")
            choice.words.extend(value for value in values if isinstance(value, str))
            for is_named in (True, False):  # which may be written in different ways
                rest = [
                    value for value in values
                    if not isinstance(value, str) and (kind_of(value) in _PYTHON) == is_named
                ]  # fmt: skip
                if rest:
                    choice.others.append({"enum": rest})
            continue
        kinds = kinds_of(each)
        if not keys:
            kinds = frozenset({"string"})  # any text, which is read as what it may be
        elif kinds is None:
            kinds = frozenset(kind for key, kind in _TELLING.items() if key in keys)
        if not kinds:
            raise UnknownSchemaError("has no type")
        if unknown := sorted(kinds - _BEGINS.keys() - {"string"}):
            raise UnknownSchemaError(f"has the type {unknown[0]!r}")
        if "string" in kinds:
            choice.strings.append(each)
        if rest := sorted(kinds - {"string"}):
            choice.others.append(each | {"type": rest if len(rest) > 1 else rest[0]})
    return choice


def _is_bounded(schema: dict[str, Any]) -> bool:
    """Return whether not all values of its types meet `schema`."""
    return bool(schema.keys() - ANNOTATIONS - {"type"})
