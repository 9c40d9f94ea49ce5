"""Messages and other contents of a body, converted to the client's types."""

import msgspec

from loramux._content_wire import openai_image
from loramux.gateway.body import ChatMessage
from loramux.gateway.refusal import invalid, unsupported
from loramux.types import ContentPart, Image, Message


def message_of(index: int, message: ChatMessage) -> Message:
    """Return the message at `index` as the client's type.

    Raises:
        InvalidArgumentError: It is invalid; the error names the field.
    """
    found: Message = {"role": message.role, "content": _content(index, message)}
    if message.tool_calls:
        found["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    if reasoning := message.reasoning or message.reasoning_content:
        found["reasoning"] = reasoning
    if message.role == "tool":
        found["tool_call_id"] = message.tool_call_id or ""
        found["name"] = message.name or ""
    elif message.tool_call_id:
        name = f"messages[{index}].tool_call_id"
        raise invalid(name, f"{name} is set with role {message.role!r}; expected role 'tool'")
    return found


def _content(index: int, message: ChatMessage) -> str | list[ContentPart]:
    name = f"messages[{index}].content"
    if message.content is None and message.tool_calls:
        return ""
    if message.content is None:
        raise invalid(name, f"{name} is missing; expected text")
    if isinstance(message.content, str):
        return message.content
    return [
        _image(f"{name}[{place}]", part)
        if part.get("type") == "image_url"
        else _text(f"{name}[{place}]", part, "'text' and 'image_url' are")
        for place, part in enumerate(message.content)
    ]


def _image(name: str, part: dict[str, object]) -> Image:
    try:
        return openai_image(part)
    except ValueError as error:
        raise invalid(name, f"{name} {error}") from None


def text_of(name: str, content: str | list[dict[str, object]]) -> str:
    """Return the text of the field `name`; the texts of several parts are concatenated.

    Raises:
        InvalidArgumentError: A part is not text.
    """
    if isinstance(content, str):
        return content
    return "".join(
        _text(f"{name}[{place}]", part, "'text' is") for place, part in enumerate(content)
    )


def _text(name: str, part: dict[str, object], known: str) -> str:
    """Return the text of the part `name`; `known` lists the supported types for errors."""
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise unsupported(name, f"{name} has type {kind!r}; only {known} supported")
    if not isinstance(text, str) or len(part) > 2:
        raise invalid(
            name, f"{name} is malformed; expected type, text (a string) and no other fields"
        )
    return text
