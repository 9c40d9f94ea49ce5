"""Grammar rules for arguments that are written one by one."""

from typing import Any

from loramux_server.chat.messages import Piece
from loramux_server.forms.grammar import escape_regex, json_rule
from loramux_server.tools.choices import NAMED, arguments_in, named_values, split
from loramux_server.tools.parameter_reader import MAX_NAME, Given
from loramux_server.tools.rules import Rules
from loramux_server.tools.schemas import (
    ANNOTATIONS,
    Allowance,
    ToolSchema,
    UnknownSchemaError,
    definitions_of,
    kinds_of,
    kinds_of_any,
)
from loramux_server.tools.symbols import literal, symbols
from loramux_server.tools.syntax import Parameters, ToolSyntax, marks_of
from loramux_server.tools.text_rules import text_rules
from loramux_server.tools.values import value_of

_BEGINS = {"array": "[", "object": "{", "boolean": "tfTF", "null": "nN"} | dict.fromkeys(
    ("integer", "number"), "-0123456789"
)
"""JSON type -> the characters with which its values begin."""


class ParameterForm:
    """Turns schemas into grammar rules."""

    def __init__(self, syntax: ToolSyntax, parameters: Parameters, rules: Rules) -> None:
        """Prepare to add rules for this syntax to `rules`."""
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
        """Add the rules of arguments that meet `schema`, an object's.

        One rule is `name`, in lower case; the names of others begin with it.

        Raises:
            UnknownSchemaError: It cannot be enforced where parameters are written one by one.
            LargeRulesError: The rules are too long.
        """
        arguments = arguments_in(schema)
        if arguments is None:
            self.add_free(name)
            return
        parts = []
        whole = ToolSchema(schema, self._allowance)
        for number, (key, inner) in enumerate(arguments.properties.items()):
            part = f"{name}_{number}"
            try:
                self._add_parameter(part, key, inner, whole)
            except UnknownSchemaError as error:
                raise UnknownSchemaError(f"has the parameter {key!r}, which {error}") from None
            parts.append(part if key in arguments.required else f"{part}?")
        self._rules.add(f"{name}: {' '.join(parts)}")

    def add_free(self, name: str) -> None:
        """Add the rules of any arguments; named as by `add`."""
        between = " | ".join(dict.fromkeys([self._string, self._other]))
        key, values = f"{name.upper()}_KEY", self._texts(f"{name}_any", {}, "")
        self._rules.add(
            f"{name}: ({self._begin} {key} ({between}) ({' | '.join(values)}))*",
            f"{key}: /[A-Za-z0-9_.-]{{1,64}}/",
        )

    def _add_parameter(self, name: str, key: str, schema: object, whole: ToolSchema) -> None:
        """Add the rules of one parameter; errors and names are those of `add`."""
        if not 0 < len(key) <= MAX_NAME or key != key.strip() or self._end_name in key:
            raise UnknownSchemaError("has a name whose end is ambiguous")
        alternatives = whole.alternatives(schema, is_exact=True)
        choice, kinds = split(alternatives), kinds_of_any(alternatives)
        strings = [self._word(key, word, kinds) for word in dict.fromkeys(choice.words)]
        # A text is read as an allowed type if it looks like one. So where only some values of
        # that type are allowed, a string must not begin like one.
        not_first = "" if self._way.tells_strings else "".join(
            dict.fromkeys(
                _BEGINS[kind] for each in choice.others if _is_bounded(each)
                for kind in sorted(kinds_of(each) or ())
            )
        )  # fmt: skip
        for number, each in enumerate(choice.strings):
            strings += self._texts(f"{name}_text{number}", each, not_first)
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
            raise UnknownSchemaError("allows no value")
        self._rules.add(f"{name}: {self._begin} {literal(key)} ({' | '.join(found)})")

    def _texts(self, name: str, schema: dict[str, Any], not_first: str) -> list[str]:
        """Add the rules of a string and its closing, and return their names as alternatives.

        Args:
            name: The name of the first rule.
            schema: The schema of the string.
            not_first: Characters with which it cannot begin unless it is wrapped.
        """
        closing, wrapping = self._way.closing, self._way.wrapping
        not_in = escape_regex(wrapping[0]) if wrapping else None
        self._rules.add(
            *text_rules(self._syntax, closing, name, schema, not_first=not_first, not_in=not_in)
        )
        if wrapping is None:
            return [name]
        inside = f"{name}_inside"
        closing = (Piece(wrapping[1], False), *closing)
        self._rules.add(*text_rules(self._syntax, closing, inside, schema))
        return [name, f"{literal(wrapping[0])} {inside}"]

    def _word(self, key: str, word: str, kinds: frozenset[str] | None) -> str:
        """Return the grammar expression for one string and its closing."""
        given = Given(key, word, True if self._way.tells_strings else None)
        read = value_of(given, kinds, is_python=self._way.is_python)
        is_wrapped = self._way.wrapping is not None and self._way.wrapping[0] in word
        if self._end_value in word or is_wrapped or read != word:
            raise UnknownSchemaError(
                f"has the value {word!r}, which would be parsed as another one"
            )
        return f"{literal(word)} {self._end}"

    def _value(self, schema: dict[str, Any], root: dict[str, Any]) -> str:
        """Return the grammar expression for a value that meets `schema` and is no string."""
        kinds = kinds_of(schema) or frozenset()
        if self._way.is_python and kinds <= NAMED.keys():
            return " | ".join(literal(str(value)) for value in named_values(schema))
        return json_rule(schema | definitions_of(schema, root))


def _is_bounded(schema: dict[str, Any]) -> bool:
    """Return whether `schema` restricts the values of its types."""
    return bool(schema.keys() - ANNOTATIONS - {"type"})
