"""Messages of conversations, tools, and calls of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypeAlias, TypedDict, cast

from loramux._image import Image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for; the caller runs it."""

    id: str
    """What a message with the result says as its `tool_call_id`."""
    name: str
    """The tool's; where the model decides, perhaps none of those that there are."""
    arguments: str
    """A JSON object, as text."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments, by name."""
        return cast(dict[str, Any], json.loads(self.arguments))


ContentPart: TypeAlias = str | Image | bytes | Mapping[str, Any]
"""A text, or an image, which may be the bytes of its file; OpenAI's `{"type": "text", "text": …}`
and `{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}` will do."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str | Sequence[ContentPart]
    """What was said: a text, or texts and images in the order in which they stand."""
    tool_calls: NotRequired[Sequence[ToolCall | Mapping[str, Any]]]
    """What an assistant asked for; OpenAI's `{"id": …, "function": {…}}` will do."""
    tool_call_id: NotRequired[str]
    """Of which call a tool's message is the result."""
    name: NotRequired[str]
    """That of the tool, for templates that tell it."""
    reasoning: NotRequired[str]
    """What an assistant thought before; many templates leave it out."""


class ToolOptions(TypedDict, total=False):
    """What goes with messages."""

    tools: Sequence[Mapping[str, Any]]
    """Functions that the model may call: `{"name": …, "description": …, "parameters": {…}}`, the
    last a JSON schema, which `"strict": True` keeps arguments to where the model decides, too;
    OpenAI's `{"type": "function", "function": {…}}` will do."""
    tool_choice: str | Mapping[str, Any]
    """`auto`, which lets the model decide, `none`, `required`, or the name of the tool to call;
    OpenAI's `{"type": "function", "function": {"name": …}}` will do."""
    parallel_tool_calls: bool
    """Whether an answer may have more than one call."""
    chat_template_kwargs: Mapping[str, Any]
    """Variables for the chat template, such as `{"enable_thinking": False}`."""
    separate_reasoning: bool
    """Whether what the model thinks before its answer is told apart; it is, if this is left out."""
