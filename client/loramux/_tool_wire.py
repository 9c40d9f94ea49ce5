"""Messages and tools: conversion to and from protobuf messages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loramux._content_wire import add_content
from loramux._fitting import fitting
from loramux._tool_types import Message, ToolCall, ToolOptions
from loramux.v1 import generation_pb2

_MODES = {
    "auto": generation_pb2.TOOL_MODE_AUTO,
    "none": generation_pb2.TOOL_MODE_NONE,
    "required": generation_pb2.TOOL_MODE_REQUIRED,
}
OPTIONS = frozenset(ToolOptions.__annotations__)
"""Names of the options that require messages."""


def add_messages(messages: Iterable[Message], request: generation_pb2.GenerateRequest) -> None:
    """Add a conversation to `request`.

    Raises:
        InvalidArgumentError: A value does not fit its field.
    """
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        with fitting(field):
            added = request.messages.add(role=message["role"])
            added.tool_call_id = message.get("tool_call_id", "")
            added.name = message.get("name", "")
            added.reasoning = message.get("reasoning", "")
        add_content(field, message["content"], added)
        for number, call in enumerate(message.get("tool_calls", ())):
            with fitting(f"{field}.tool_calls[{number}]"):
                added.tool_calls.append(_call(call))


def add_tools(options: Mapping[str, Any], request: generation_pb2.GenerateRequest) -> None:
    """Add options that require messages to `request`; `options` are as in `ToolOptions`.

    Raises:
        InvalidArgumentError: A value does not fit its field.
    """
    for index, tool in enumerate(options.get("tools", ())):
        with fitting(f"tools[{index}]"):
            request.tools.append(_tool(tool))
    choice = options.get("tool_choice")
    if choice is not None:
        with fitting("tool_choice"):
            name = choice if isinstance(choice, str) else _function(choice)["name"]
            if isinstance(choice, str) and choice in _MODES:
                request.tool_choice.mode = _MODES[choice]
            else:
                request.tool_choice.name = name
    for name in ("parallel_tool_calls", "separate_reasoning"):
        if name in options:
            with fitting(name):
                setattr(request, name, options[name])
    if "chat_template_kwargs" in options:
        with fitting("chat_template_kwargs"):
            request.chat_template_kwargs = _json(options["chat_template_kwargs"])


def tool_calls(messages: Iterable[generation_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    """Convert tool calls."""
    return tuple(ToolCall(call.id, call.name, call.arguments) for call in messages)


def _tool(tool: Mapping[str, Any]) -> generation_pb2.Tool:
    function = _function(tool)
    message = generation_pb2.Tool(name=function["name"])
    if function.get("description") is not None:
        message.description = function["description"]
    if function.get("parameters") is not None:
        message.parameters = _json(function["parameters"])
    message.strict = bool(function.get("strict"))
    return message


def _call(call: ToolCall | Mapping[str, Any]) -> generation_pb2.ToolCall:
    if isinstance(call, ToolCall):
        return generation_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
    function = _function(call)
    return generation_pb2.ToolCall(
        id=call.get("id") or "",
        name=function["name"],
        arguments=_json(function.get("arguments", "")),
    )


def _function(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the function of a tool or call, in our form or OpenAI's."""
    if not isinstance(given, Mapping):
        raise ValueError(f"is a {type(given).__name__}; expected an object")
    function = given.get("function", given)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("has no name; expected one")
    return function


def _json(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping | Sequence):
        raise ValueError(f"is a {type(value).__name__}; expected an object, or JSON as text")
    return json.dumps(value, ensure_ascii=False)
