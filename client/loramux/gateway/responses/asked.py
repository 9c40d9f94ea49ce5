"""From the body of a request for a response to what the server is asked, as a chat asks it."""

from collections.abc import Callable
from typing import Literal

import msgspec

from loramux.gateway.asked import asked_by_chat
from loramux.gateway.body import (
    ChatBody,
    ChatMessage,
    NamedSchema,
    ObjectFormat,
    SamplingBody,
    TextFormat,
)
from loramux.gateway.body import SchemaFormat as ChatSchemaFormat
from loramux.gateway.refusal import invalid, unsupported
from loramux.gateway.responses.body import ResponsesBody, SchemaFormat, TextOptions
from loramux.gateway.responses.kinds import of_kind
from loramux.gateway.tools import Function, FunctionName, NamedTool, Tool
from loramux.v1 import generation_pb2

Choice = Literal["auto", "none", "required"] | NamedTool
_MODES: tuple[Literal["auto", "none", "required"], ...] = ("auto", "none", "required")
_SHARED = [field.name for field in msgspec.structs.fields(SamplingBody)]

_STATELESS: dict[str, tuple[Callable[[ResponsesBody], bool], str]] = {
    "previous_response_id": (
        lambda body: body.previous_response_id is not None,
        "no responses are kept here: give what was said before as items of input",
    ),
    "conversation": (
        lambda body: body.conversation is not None,
        "no conversations are kept here: give what was said before as items of input",
    ),
    "prompt": (
        lambda body: body.prompt is not None,
        "no prompts are kept here: give the text as instructions or input",
    ),
    "background": (
        lambda body: body.background,
        "no responses are kept here: leave it out, and set stream to be told what is there already",
    ),
    "truncation": (
        lambda body: body.truncation != "disabled",
        "expected 'disabled': what does not fit the context is refused, and no item is left out",
    ),
}
"""Field -> whether it asks for what is not served, and what would be right."""


def check_stateless(body: ResponsesBody) -> None:
    """Demand that `body` can be answered by who keeps nothing.

    Raises:
        InvalidArgumentError: It cannot; the error names the field.
    """
    for name, (is_wrong, why) in _STATELESS.items():
        if is_wrong(body):
            value = getattr(body, name)
            shown = "true" if value is True else f"{value!r:.100}"
            raise unsupported(name, f"{name} is {shown}; {why}")
    if body.text.verbosity not in (None, "medium"):
        raise unsupported(
            "text.verbosity",
            f"text.verbosity is {body.text.verbosity!r}; expected 'medium': say in instructions "
            "how long an answer is to be",
        )


def asked_by_response(
    body: ResponsesBody, messages: list[ChatMessage], base: str, request_id: str
) -> generation_pb2.GenerateRequest:
    """Return what `body` asks of a server whose base model is called `base`.

    Args:
        body: The body.
        messages: Its conversation.
        base: What the base model is called.
        request_id: The id of the request.

    Raises:
        LoramuxError: It cannot be asked; the error names the field, of messages that of `messages`.
    """
    shared = {name: getattr(body, name) for name in _SHARED}
    chat = ChatBody(
        **shared,
        messages=messages,
        max_tokens=body.max_output_tokens,
        response_format=_format(body.text),
        logprobs=body.tells_logprobs,
        top_logprobs=body.top_logprobs if body.tells_logprobs else None,
        tools=[_tool(f"tools[{place}]", tool) for place, tool in enumerate(body.tools)],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        chat_template_kwargs=_variables(body) or None,
    )
    (asked,) = asked_by_chat(chat, base, request_id)
    return asked


def _format(text: TextOptions) -> TextFormat | ObjectFormat | ChatSchemaFormat:
    if isinstance(text.format, SchemaFormat):
        return ChatSchemaFormat(NamedSchema(text.format.schema))
    return text.format


def _tool(name: str, given: dict[str, object]) -> Tool:
    return Tool(of_kind(
        name, given, {"function": Function}, ": tools that OpenAI's servers run are not served"
    ))  # fmt: skip


def _choice(given: str | dict[str, object]) -> Choice:
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


def _variables(body: ResponsesBody) -> dict[str, object]:
    """Return what the chat template is told."""
    effort = body.reasoning.effort if body.reasoning else None
    found: dict[str, object] = {} if effort is None else {"reasoning_effort": effort}
    if effort == "none":
        found["enable_thinking"] = False
    return found | body.chat_template_kwargs
