"""Tools in Anthropic's API, converted to those of chats."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loramux.gateway.anthropic.body import ToolChoice
from loramux.gateway.parsing import converted
from loramux.gateway.refusal import check_one_of, invalid, unsupported
from loramux.gateway.tools import Function, FunctionName, NamedTool, Tool

_MODES = {"auto": "auto", "any": "required", "none": "none"}
"""Type of a choice -> its name in chats."""
_ONLY = {"allowed_callers": ["direct"], "defer_loading": False, "input_examples": []}
"""Field of a tool -> the only value that is supported, other than null."""


class CustomTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the caller runs."""

    name: str
    input_schema: dict[str, object]
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    cache_control: object = None
    eager_input_streaming: bool | None = None
    """Ignored: a tool's input is sent when it is complete."""
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    input_examples: list[object] | None = None


def tools_of(given: Sequence[Mapping[str, object]]) -> list[Tool]:
    """Return the tools of a request in the form of chats.

    Raises:
        InvalidArgumentError: One is malformed, or is not run by the caller.
    """
    return [_tool(f"tools[{place}]", tool) for place, tool in enumerate(given)]


def choice_of(choice: ToolChoice | None, tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the fields of a chat body for `choice`.

    Raises:
        InvalidArgumentError: It is malformed, or requires a tool when there are no `tools`.
    """
    if choice is None:
        return {}
    check_one_of("tool_choice.type", choice.type, (*_MODES, "tool"))
    if (choice.type == "tool") != (choice.name is not None):
        raise invalid(
            "tool_choice.name",
            f"tool_choice.name is {choice.name!r} with type {choice.type!r}; expected a name with "
            "type 'tool' only",
        )
    if choice.type == "any" and not tools:
        raise invalid("tool_choice.type", "tool_choice.type is 'any', which requires tools")
    named = NamedTool(FunctionName(choice.name)) if choice.name is not None else None
    found: dict[str, Any] = {"tool_choice": named or _MODES[choice.type]}
    if choice.disable_parallel_tool_use:
        found["parallel_tool_calls"] = False
    return found


def _tool(name: str, given: Mapping[str, object]) -> Tool:
    kind = given.get("type")
    if kind not in (None, "custom"):
        raise unsupported(
            f"{name}.type",
            f"{name}.type is {kind!r}; expected 'custom', a tool with a name and an "
            "input_schema that the caller runs",
        )
    tool = converted(given, CustomTool, name)
    for field, right in _ONLY.items():
        if getattr(tool, field) not in (None, right):
            raise unsupported(
                f"{name}.{field}",
                f"{name}.{field} is {str(getattr(tool, field))[:80]}; expected {right}, or null",
            )
    return Tool(Function(tool.name, tool.description, tool.input_schema, tool.strict))
