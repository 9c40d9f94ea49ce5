"""Converts the body of a request to the server's request."""

from typing import Any

from loramux.gateway.anthropic.body import CountBody, Format, MessagesBody
from loramux.gateway.anthropic.merged_messages import MergedMessages
from loramux.gateway.anthropic.tools import choice_of, tools_of
from loramux.gateway.body import ChatBody, NamedSchema, SchemaFormat
from loramux.gateway.grpc_requests import chat_requests_with
from loramux.gateway.refusal import check_one_of, invalid
from loramux.v1 import generation_pb2

_MAX_INT32 = (1 << 31) - 1
_SHOWN, OMITTED = "summarized", "omitted"
"""How reasoning may appear in answers."""
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Effort -> template variable `reasoning_effort`; most templates know these three values."""


def messages_request(
    body: CountBody, merged: MergedMessages, base: str
) -> generation_pb2.GenerateRequest:
    """Return the request for `body` to a server whose base model is called `base`.

    Args:
        body: The body.
        merged: Its messages, converted.
        base: The base model's name.

    Raises:
        LoramuxError: A field is invalid or unsupported; the error names it.
    """
    tools = tools_of(body.tools)
    form = _form(body)
    sampling: dict[str, Any] = {}
    if isinstance(body, MessagesBody):
        sampling = {
            "max_tokens": min(body.max_tokens, _MAX_INT32),
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "seed": body.seed,
            "priority": body.priority,
            "stop": body.stop_sequences or None,
            "user": (body.metadata and body.metadata.user_id) or "",
        }
    chat = ChatBody(
        model=body.model,
        messages=[],
        tools=tools,
        chat_template_kwargs=_variables(body),
        response_format=SchemaFormat(NamedSchema(form.schema)) if form else None,
        adapters=body.adapters,
        combination=body.combination,
        timeout=body.timeout,
        **choice_of(body.tool_choice, tools),
        **sampling,
    )
    (request,) = chat_requests_with(chat, merged.messages, base)
    return request


def _variables(body: CountBody) -> dict[str, object]:
    """Return the template variables for thinking and effort."""
    found: dict[str, object] = {}
    if body.thinking:
        check_one_of("thinking.type", body.thinking.type, ("enabled", "adaptive", "disabled"))
        check_one_of("thinking.display", body.thinking.display or _SHOWN, (_SHOWN, OMITTED))
        # Templates use either name; the other is ignored.
        found |= dict.fromkeys(("enable_thinking", "thinking"), body.thinking.type != "disabled")
    effort = body.output_config and body.output_config.effort
    if effort:
        check_one_of("output_config.effort", effort, _EFFORTS)
        found["reasoning_effort"] = _EFFORTS[effort]
    return found | (body.chat_template_kwargs or {})


def _form(body: CountBody) -> Format | None:
    """Return the format of the text, if the request has one."""
    form = body.output_config and body.output_config.format
    if form and body.output_format:
        raise invalid(
            "output_format", "output_format and output_config.format are both set; set only one"
        )
    for name, each in (("output_config.format", form), ("output_format", body.output_format)):
        if each:
            check_one_of(f"{name}.type", each.type, ("json_schema",))
    return form or body.output_format
