"""Grammar rules for arguments that are written as code."""

from contextlib import suppress
from typing import Any

from loramux_server.forms.grammar import json_rule
from loramux_server.tools.choices import NAMED, arguments_in, named_values, split
from loramux_server.tools.code_reader import is_word
from loramux_server.tools.escapes import ESCAPE
from loramux_server.tools.rules import Rules
from loramux_server.tools.schemas import (
    Allowance,
    ToolSchema,
    UnknownSchemaError,
    definitions_of,
    kinds_of,
)
from loramux_server.tools.symbols import literal, symbols
from loramux_server.tools.syntax import Code, ToolSyntax
from loramux_server.tools.text_rules import text_rules

_KEY = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"


class CodeForm:
    """Turns schemas into grammar rules.

    JSON is valid code as well, so any value may be written as JSON, with its whole schema enforced.
    The template's own spelling of a value is also allowed if the schema is simple enough for
    parameters that are written one by one.
    """

    def __init__(self, syntax: ToolSyntax, code: Code, rules: Rules) -> None:
        """Prepare to add rules for this syntax to `rules`."""
        self._rules = rules
        self._allowance = Allowance()
        self._syntax = syntax
        self._code = code
        self._quote = code.quote if code.quote and code.quote.text != '"' else None
        """The template's quote, if JSON does not have it."""

    def add(self, name: str, schema: dict[str, Any]) -> None:
        """Add the rules of arguments that meet `schema`, an object's.

        The first rule is `name`, in lower case; the names of others begin with it.

        Raises:
            UnknownSchemaError: It cannot be enforced in code.
            LargeRulesError: The rules are too long.
        """
        arguments = arguments_in(schema)
        if arguments is None:
            self.add_free(name)
            return
        whole = ToolSchema(schema, self._allowance)
        firsts, is_open = [], True
        comma = literal(self._code.comma)
        for number, (key, inner) in enumerate(arguments.properties.items()):
            part, is_required = f"{name}_{number}", key in arguments.required
            self._add_argument(part, key, inner, whole)
            more = f"{name}_more{number + 1}"
            if is_open:
                firsts.append(f"{part} {more}")
                is_open = not is_required
            if number:
                this = f"{comma} {part}" if is_required else f"({comma} {part})?"
                self._rules.add(f"{name}_more{number}: {this} {more}")
        self._rules.add(f'{name}_more{len(arguments.properties)}: ""')
        inner = f"({' | '.join(firsts)}){'?' if is_open else ''}" if firsts else ""
        self._rules.add(f"{name}: {literal(self._code.begin)} {inner} {literal(self._code.end)}")

    def add_free(self, name: str) -> None:
        """Add the rules of any arguments; named as by `add`."""
        begin, assign, comma, end = (
            literal(text)
            for text in (self._code.begin, self._code.assign, self._code.comma, self._code.end)
        )
        key, value = f"{name.upper()}_KEY", f"{name}_any"
        pair = f"{key} {assign} {value}"
        self._rules.add(
            f"{name}: {begin} ({pair} ({comma} {pair})*)? {end}",
            f"{key}: {_KEY}",
            f"{value}: {' | '.join([f'{value}_json', *self._others(value, {}, {})])}",
            f"{value}_json: {json_rule({})}",
        )

    def _add_argument(self, name: str, key: str, schema: object, whole: ToolSchema) -> None:
        """Add the rules of one argument; errors and names are those of `add`."""
        if not is_word(key):
            raise UnknownSchemaError(f"has the parameter {key!r}, which is not a valid name")
        if not isinstance(schema, dict | bool) or schema is False:
            raise UnknownSchemaError(f"has the parameter {key!r}, which allows no value")
        known = {} if schema is True else schema
        values = [f"{name}_json", *self._others(name, known, whole.root)]
        self._rules.add(
            f"{name}: {literal(key + self._code.assign)} ({' | '.join(values)})",
            f"{name}_json: {json_rule(known | definitions_of(known, whole.root))}",
        )

    def _others(self, name: str, schema: dict[str, Any], root: dict[str, Any]) -> list[str]:
        """Add rules of values that are not written as JSON; return the alternatives."""
        try:
            alternatives = ToolSchema(root, self._allowance).alternatives(schema, is_exact=True)
            choice = split(alternatives)
        except UnknownSchemaError:
            return []
        found: list[str] = []
        if self._code.is_python:
            named = [each for each in choice.others if (kinds_of(each) or {""}) <= NAMED.keys()]
            found += [literal(str(value)) for each in named for value in named_values(each)]
            if not schema:
                found += [literal(str(value)) for values in NAMED.values() for value in values]
        if self._quote is None:
            return found
        quote = symbols(self._syntax.ids, [self._quote])
        not_in = None if self._quote.is_token else ESCAPE
        found += [
            f"{quote} {literal(word)} {quote}" for word in choice.words
            if self._quote.text not in word and "\\" not in word
        ]  # fmt: skip
        for number, each in enumerate(choice.strings):
            rule = f"{name}_text{number}"
            with suppress(UnknownSchemaError):
                rules = text_rules(self._syntax, [self._quote], rule, each, not_in=not_in)
                self._rules.add(*rules)
                found.append(f"{quote} {rule}")
        return found
