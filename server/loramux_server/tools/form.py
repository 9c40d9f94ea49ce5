"""The grammar of an answer with tool calls."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from loramux_server.chat.messages import Tool
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.grammar import escape_regex, json_rule
from loramux_server.tools.code_form import CodeForm
from loramux_server.tools.parameter_form import ParameterForm
from loramux_server.tools.rules import Rules
from loramux_server.tools.schemas import UnknownSchemaError
from loramux_server.tools.symbols import literal, symbols
from loramux_server.tools.syntax import COUNT, ID, ToolSyntax, joined

Otherwise: TypeAlias = dict[str, object] | Literal["text"] | None
"""What an answer without calls may be: JSON of a schema, or any text. None requires calls."""
ANY_TEXT: Literal["text"] = "text"

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


class UnknownToolSchemaError(Exception):
    """The schema of a tool cannot be enforced; the message says why."""

    def __init__(self, message: str, tool: Tool) -> None:
        super().__init__(message)
        self.tool = tool


def form_of_calls(
    syntax: ToolSyntax,
    tools: Sequence[Tool],
    otherwise: Otherwise,
    *,
    is_parallel: bool,
) -> Form:
    """Return the form of an answer with calls of `tools`, or `otherwise`.

    Arguments meet the schema if the tool is strict or a call is required (`otherwise` is None);
    else they may be any.

    Args:
        syntax: How calls are written.
        tools: The tools.
        otherwise: What an answer without calls may be.
        is_parallel: Whether there may be several calls.

    Raises:
        UnknownToolSchemaError: The schema of a tool cannot be enforced in this syntax.
        LargeRulesError: The grammar is too large.
    """
    rules = Rules()
    arguments: ParameterForm | CodeForm | None = None
    if syntax.parameters:
        arguments = ParameterForm(syntax, syntax.parameters, rules)
    elif syntax.code:
        arguments = CodeForm(syntax, syntax.code, rules)
    begin = symbols(syntax.ids, syntax.opening)
    calls = _calls(syntax, is_parallel=is_parallel)
    if otherwise is None:
        rules.add(f"answer: {begin} {calls}")
    elif otherwise == ANY_TEXT:
        rules.add(*_after_text(syntax, begin, calls))
    else:
        rules.add(f"answer: {begin} {calls} | other", f"other: {json_rule(otherwise)}")
    rules.add("call: " + " | ".join(f"call{number}" for number in range(len(tools))))
    head, middle, tail = (symbols(syntax.ids, p) for p in (syntax.head, syntax.middle, syntax.tail))
    parts = (*syntax.head, *syntax.middle, *syntax.tail)
    if ID in parts:
        rules.add("ID: /[A-Za-z0-9]{9}/")
    if COUNT in parts:
        rules.add("COUNT: /[0-9]{1,4}/")
    for number, tool in enumerate(tools):
        rules.add(f"call{number}: {head} {literal(tool.name)} {middle} arguments{number} {tail}")
        is_free = otherwise is not None and not tool.is_strict
        try:
            _add_arguments(rules, arguments, f"arguments{number}", tool, is_free=is_free)
        except UnknownSchemaError as error:
            raise UnknownToolSchemaError(str(error), tool) from None
    return Form(FormKind.TOOL_CALLS, rules.text)


def json_arguments(tool: Tool, *, is_free: bool) -> str:
    """Return the grammar expression for the arguments of `tool` as a JSON object.

    With `is_free`, for any object.
    """
    schema = _NOTHING if tool.parameters is None else {"type": "object"} | tool.parameters
    return json_rule({"type": "object"} if is_free else schema)


def _add_arguments(
    rules: Rules,
    arguments: ParameterForm | CodeForm | None,
    name: str,
    tool: Tool,
    *,
    is_free: bool,
) -> None:
    """Add the rules of the arguments of `tool`, or of any arguments if `is_free`."""
    if arguments is None:
        rules.add(f"{name}: {json_arguments(tool, is_free=is_free)}")
    elif is_free:
        arguments.add_free(name)
    else:
        arguments.add(name, _NOTHING if tool.parameters is None else tool.parameters)


def _calls(syntax: ToolSyntax, *, is_parallel: bool) -> str:
    """Return the expression for calls and their closing."""
    end = symbols(syntax.ids, syntax.closing)
    if not is_parallel or syntax.separator is None:
        return f"call {end}"
    return f"call ({symbols(syntax.ids, syntax.separator)} call)* {end}"


def _after_text(syntax: ToolSyntax, begin: str, calls: str) -> list[str]:
    """Return the rules of text that contains no call, and of optional calls after it."""
    at, trigger = syntax.first_token, syntax.trigger
    if at is not None:  # TEXT matches no added token, but any part of the opening before it
        after = symbols(syntax.ids, syntax.opening[at:])
        first = "" if after == begin else f"{begin} {calls} | "
        return [f"answer: {first}TEXT? ({after} {calls})?", "TEXT: /(?s:.+)/"]
    if trigger:
        after = joined(syntax.opening).partition(trigger)[2]
        return [
            f"answer: TEXT? | lead {literal(after) if after else ''} {calls}",
            f"TEXT: /(?s:.+)/ & ~/(?s:.*){escape_regex(trigger)}(?s:.*)/",
            f"lead[lazy]: /(?s:.*){escape_regex(trigger)}/",
        ]
    return [f"answer: TEXT? | {begin} {calls}", r"TEXT: /\s*[^\s{\[(](?s:.*)/"]
