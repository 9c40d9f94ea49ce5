"""The conversation of a request, validated: messages, tools, and template variables."""

import asyncio
from typing import Any

from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_server.chat.messages import Call, Conversation, Message, Tool
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.generation.images import images_of
from loramux_server.services.text_fields import most_bytes
from loramux_server.text.tokenizer import OFF_LOOP
from loramux_server.tools.arguments import NAME, parse_object
from loramux_server.wire.model_info import ModelInfo

MAX_BYTES = 768 << 10
"""Of all texts of a conversation together, if the context is long; images are counted separately.
The rendered prompt is somewhat larger."""
MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_CALLS = 128
"""Per message."""
MAX_CALL_ID = 128
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages. A template may put the role into a control token, so it must not be a caller's
free text."""
_ROLES_OF = {
    "tool_calls": "assistant", "reasoning": "assistant", "tool_call_id": "tool", "name": "tool",
}  # fmt: skip
"""Field of a message -> the role that it requires."""
_SHOWN_IMAGES = ("user", "system", "developer", "tool")
"""Roles whose messages may have images."""
_NAMES = "1 to 64 letters, digits, '_', '-' and '.'"
_OURS = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables that come from other fields of the request."""


async def conversation_of(
    request: generation_pb2.GenerateRequest, model: ModelInfo
) -> Conversation:
    """Return `parse_conversation(request, model)`, computed in a thread if that may take long."""
    has_json = bool(request.tools or request.chat_template_kwargs)
    has_json |= any(message.tool_calls for message in request.messages)
    if has_json and request.ByteSize() >= OFF_LOOP:
        return await asyncio.to_thread(parse_conversation, request, model)
    return parse_conversation(request, model)


def parse_conversation(request: generation_pb2.GenerateRequest, model: ModelInfo) -> Conversation:
    """Return the validated conversation of `request`; it is empty if there are no messages.

    Raises:
        InvalidArgumentError: A field is invalid; the message names it, its value and what would be
            right.
    """
    _check_size(request, most_bytes(model, MAX_BYTES))
    messages = [_message(f"messages[{i}]", message) for i, message in enumerate(request.messages)]
    tools = _tools(request)
    variables = _variables(request)
    for field, value in (("tools", tools), ("chat_template_kwargs", variables)):
        if value and not messages:
            raise wrong(field, "is set; expected none without messages")
    if not asks_for_tools(request):
        tools = []
    return Conversation(messages, tools, variables)


def asks_for_tools(request: generation_pb2.GenerateRequest) -> bool:
    """Return whether the tools of `request`, if it has any, are shown to the model."""
    return request.tool_choice.mode != generation_pb2.TOOL_MODE_NONE


def _check_size(request: generation_pb2.GenerateRequest, at_most: int) -> None:
    for field, found, most in (
        ("messages", len(request.messages), MAX_MESSAGES),
        ("tools", len(request.tools), MAX_TOOLS),
    ):
        if found > most:
            raise wrong(field, f"has {found} entries; expected at most {most}")
    if request.messages and request.parse_special_tokens:
        raise wrong("parse_special_tokens", "is True; expected false: messages are plain text")
    sizes = {
        "messages": sum(message.ByteSize() for message in request.messages)
        - sum(len(image.data) for _, image in images_of(request)),
        "tools": sum(tool.ByteSize() for tool in request.tools),
        "chat_template_kwargs": len(request.chat_template_kwargs.encode()),
    }
    if sum(sizes.values()) > at_most:
        field = max(sizes, key=lambda name: sizes[name])
        raise wrong(
            field,
            f"has {sizes[field]} bytes; expected at most {at_most} of messages, tools and "
            "chat_template_kwargs together",
        )


def _message(field: str, message: generation_pb2.ChatMessage) -> Message:
    if message.role not in ROLES:
        raise wrong(
            f"{field}.role", f"is {shown(message.role)}; expected one of {', '.join(ROLES)}"
        )
    for name, role in _ROLES_OF.items():
        if getattr(message, name) and message.role != role:
            raise wrong(
                f"{field}.{name}", f"is set; expected none: the role is {message.role}, not {role}"
            )
    if len(message.tool_calls) > MAX_CALLS:
        raise wrong(
            f"{field}.tool_calls",
            f"has {len(message.tool_calls)} entries; expected at most {MAX_CALLS}",
        )
    calls = [_call(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls)]
    _check_id(f"{field}.tool_call_id", message.tool_call_id)
    if message.name:
        _check_name(f"{field}.name", message.name)
    parts = _parts(field, message)
    has_image = None in parts
    return Message(
        message.role,
        # Not every template supports parts.
        message.content if has_image else "".join([message.content, *filter(None, parts)]),
        calls,
        message.tool_call_id,
        message.name,
        message.reasoning,
        parts if has_image else [],
    )


def _parts(field: str, message: generation_pb2.ChatMessage) -> list[str | None]:
    """Return the parts of a message: a text, or None for an image."""
    if message.parts and message.content:
        raise wrong(f"{field}.parts", "is set, and so is content; expected one of them")
    parts: list[str | None] = []
    for index, part in enumerate(message.parts):
        kind = part.WhichOneof("part")
        if kind is None:
            raise wrong(f"{field}.parts[{index}]", "is empty; expected text or image")
        if kind == "image" and message.role not in _SHOWN_IMAGES:
            raise wrong(
                f"{field}.parts[{index}].image",
                f"is set; expected none: the role is {message.role}, not one of "
                f"{', '.join(_SHOWN_IMAGES)}",
            )
        parts.append(part.text if kind == "text" else None)
    return parts


def _call(field: str, call: generation_pb2.ToolCall) -> Call:
    _check_id(f"{field}.id", call.id)
    _check_name(f"{field}.name", call.name)
    return Call(call.id, call.name, _object(f"{field}.arguments", call.arguments or "{}"))


def _check_id(field: str, value: str) -> None:
    if len(value) > MAX_CALL_ID or not value.isprintable():
        raise wrong(
            field, f"is {shown(value)}; expected at most {MAX_CALL_ID} printable characters"
        )


def _check_name(field: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise invalid(field, value, _NAMES)


def _tools(request: generation_pb2.GenerateRequest) -> list[Tool]:
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(request.tools):
        field = f"tools[{index}]"
        _check_name(f"{field}.name", tool.name)
        if tool.name in tools:
            raise wrong(
                f"{field}.name",
                f"is {shown(tool.name)}, as for another tool; expected each name once",
            )
        parameters = None
        if tool.HasField("parameters"):
            parameters = _schema(f"{field}.parameters", tool.parameters)
        description = tool.description if tool.HasField("description") else None
        tools[tool.name] = Tool(tool.name, description, parameters, tool.strict)
    _check_choice(request, tools)
    return list(tools.values())


def _schema(field: str, text: str) -> dict[str, Any]:
    schema = _object(field, text)
    if schema.get("type", "object") != "object":
        raise wrong(f"{field}", f"has the type {shown(schema['type'])}; expected object")
    if "x-guidance" in schema:
        raise wrong(field, "has 'x-guidance'; expected none: only the server sets its options")
    return schema


def _check_choice(request: generation_pb2.GenerateRequest, tools: dict[str, Tool]) -> None:
    choice = request.tool_choice
    which = choice.WhichOneof("choice")
    if which is None and request.HasField("tool_choice"):
        raise wrong("tool_choice", "is empty; expected mode or name")
    if which == "mode" and choice.mode not in generation_pb2.ToolMode.values():
        raise wrong("tool_choice.mode", f"is {choice.mode}; expected a value of ToolMode")
    if which == "name" and choice.name not in tools:
        there = ", ".join(sorted(tools)[:10]) or "none"
        raise wrong(
            "tool_choice.name",
            f"is {shown(choice.name)}; expected the name of one of tools: {there}",
        )
    if choice.mode == generation_pb2.TOOL_MODE_REQUIRED and not tools:
        raise wrong("tool_choice.mode", "is TOOL_MODE_REQUIRED, but tools is empty; set tools")


def _variables(request: generation_pb2.GenerateRequest) -> dict[str, Any]:
    field = "chat_template_kwargs"
    variables = _object(field, request.chat_template_kwargs or "{}")
    for name in variables:
        if name in _OURS or not name.isidentifier() or name.startswith("_"):
            raise wrong(
                field,
                f"has {shown(name)}; expected variable names other than {', '.join(sorted(_OURS))}",
            )
    return variables


def _object(field: str, text: str) -> dict[str, Any]:
    """Return the JSON object in `text`."""
    try:
        return parse_object(text)
    except ValueError as error:
        raise wrong(field, str(error)) from None
