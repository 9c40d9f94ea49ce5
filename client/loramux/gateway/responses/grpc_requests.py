"""The body of `/v1/responses` -> the body of a chat -> the request to the server."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from loramux.gateway.body import (
    ChatBody,
    ChatMessage,
    NamedSchema,
    ObjectFormat,
    SamplingBody,
    SchemaFormat,
    TextFormat,
)
from loramux.gateway.effort import effort_variables
from loramux.gateway.grpc_requests import chat_requests
from loramux.gateway.kinds import of_kind
from loramux.gateway.refusal import invalid
from loramux.gateway.responses.body import ResponsesBody
from loramux.gateway.styles import Object
from loramux.gateway.tools import Function, FunctionName, NamedTool, Tool
from loramux.v1 import generation_pb2

Choice = Literal["auto", "none", "required"] | NamedTool
_MODES: tuple[Literal["auto", "none", "required"], ...] = ("auto", "none", "required")
_FORMATS: Mapping[str, type[TextFormat | ObjectFormat | NamedSchema]] = {
    "text": TextFormat, "json_object": ObjectFormat, "json_schema": NamedSchema,
}  # fmt: skip
_SHARED = [field.name for field in msgspec.structs.fields(SamplingBody)]


def response_request(
    body: ResponsesBody, messages: list[ChatMessage], base: str
) -> generation_pb2.GenerateRequest:
    """Return the request to the server.

    Args:
        body: The body.
        messages: Its input as messages.
        base: The name of the base model.

    Raises:
        LoramuxError: A value is invalid; the error names the field, a message's as in a chat.
    """
    shared = {name: getattr(body, name) for name in _SHARED}
    chat = ChatBody(
        **shared,
        messages=messages,
        max_tokens=body.max_output_tokens,
        response_format=_format(body.text.format),
        logprobs=body.includes_logprobs,
        top_logprobs=body.top_logprobs if body.includes_logprobs else None,
        tools=[_tool(f"tools[{place}]", tool) for place, tool in enumerate(body.tools)],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        chat_template_kwargs=_variables(body) or None,
    )
    (request,) = chat_requests(chat, base)
    return request


def _format(given: Object) -> TextFormat | ObjectFormat | SchemaFormat:
    found = of_kind("text.format", given, _FORMATS)
    return SchemaFormat(found) if isinstance(found, NamedSchema) else found


def _tool(name: str, given: Object) -> Tool:
    return Tool(of_kind(
        name, given, {"function": Function}, ": built-in tools are not supported"
    ))  # fmt: skip


def _choice(given: str | Object) -> Choice:
    if isinstance(given, dict):
        named = of_kind("tool_choice", given, {"function": FunctionName})
        return NamedTool(named)
    for mode in _MODES:
        if given == mode:
            return mode
    raise invalid(
        "tool_choice",
        f"tool_choice is {given!r:.100}; expected 'auto', 'none', 'required', or "
        "{'type': 'function', 'name': …}",
    )


def _variables(body: ResponsesBody) -> Object:
    """Return the variables for the chat template."""
    effort = body.reasoning.effort if body.reasoning else None
    found = effort_variables("reasoning.effort", effort)
    return found | body.chat_template_kwargs
