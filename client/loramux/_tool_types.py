"""Messages, tools and tool calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypeAlias, TypedDict, cast

from loramux._image import Image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call made by the model; the caller runs it."""

    id: str
    """Id that a message with the result gives as its `tool_call_id`."""
    name: str
    """Name of the tool; if the model decides, possibly one that does not exist."""
    arguments: str
    """A JSON object, as text."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments, by name."""
        return cast(dict[str, Any], json.loads(self.arguments))


ContentPart: TypeAlias = str | Image | bytes | Mapping[str, Any]
"""A text, or an image as `Image` or bytes; OpenAI's `{"type": "text", "text": …}` and `{"type":
"image_url", "image_url": {"url": "data:image/png;base64,…"}}` are accepted, too."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str | Sequence[ContentPart]
    """The content: a text, or texts and images in order."""
    tool_calls: NotRequired[Sequence[ToolCall | Mapping[str, Any]]]
    """Tool calls of an assistant; OpenAI's `{"id": …, "function": {…}}` is accepted, too."""
    tool_call_id: NotRequired[str]
    """For a tool, the id of the call whose result this is."""
    name: NotRequired[str]
    """For a tool, its name, for templates that use it."""
    reasoning: NotRequired[str]
    """An assistant's reasoning before its answer; many templates omit it."""


class ToolOptions(TypedDict, total=False):
    """Options that require messages."""

    tools: Sequence[Mapping[str, Any]]
    """Functions that the model may call: `{"name": …, "description": …, "parameters": {…}}`, with
    parameters a JSON schema; `"strict": True` constrains arguments to it also if the model decides
    whether to call. OpenAI's `{"type": "function", "function": {…}}` is accepted, too."""
    tool_choice: str | Mapping[str, Any]
    """`auto` (the model decides), `none`, `required`, or the name of the tool to call; OpenAI's
    `{"type": "function", "function": {"name": …}}` is accepted, too."""
    parallel_tool_calls: bool
    """Whether a response may have several calls."""
    chat_template_kwargs: Mapping[str, Any]
    """Variables for the chat template, such as `{"enable_thinking": False}`."""
    separate_reasoning: bool
    """Whether the model's reasoning before its answer is separated from the text; True if
    omitted."""
