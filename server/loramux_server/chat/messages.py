"""Messages between the frontend and a process that renders templates.

Typed structs in MessagePack, each preceded by its length, as between frontend and engine.
"""

import json
from typing import Any

import msgspec
from msgspec import Struct

MARKS = "\U000f0000-\U0010fffd"
"""A range, as in a character class, of Unicode private-use characters that replace others while a
template is rendered. There are more of them than a request can contain."""


class Call(Struct, frozen=True, array_like=True):
    """A tool call of an assistant."""

    id: str
    """Empty if it has none."""
    name: str
    arguments: dict[str, Any]
    """JSON values."""


class Message(Struct, frozen=True, array_like=True):
    """One message of a conversation."""

    role: str
    content: str
    calls: list[Call] = []
    """The tool calls of an assistant."""
    call_id: str = ""
    """In a tool's message, the id of the call that it answers."""
    name: str = ""
    """In a tool's message, the tool, if it is named."""
    reasoning: str = ""
    """An assistant's reasoning before the content."""
    parts: list[str | None] = []
    """In place of the content, texts and images in order; None is an image."""

    @property
    def texts(self) -> list[str]:
        """The texts of its content."""
        return [text for text in self.parts if text is not None] or [self.content]

    def as_message(
        self, *, has_text_arguments: bool = False, lists_contents: bool = False
    ) -> dict[str, object]:
        """Return the message as templates expect it.

        Args:
            has_text_arguments: Give the arguments of calls as a string, not as an object.
            lists_contents: Give a content that is a string as a list with one part.
        """

        def given(arguments: dict[str, Any]) -> object:
            return json.dumps(arguments, ensure_ascii=False) if has_text_arguments else arguments

        parts = self.parts or ([self.content] if lists_contents and self.content else [])
        content = [
            {"type": "image"} if text is None else {"type": "text", "text": text} for text in parts
        ]
        message: dict[str, object] = {"role": self.role, "content": content or self.content}
        if self.calls:
            message["tool_calls"] = [
                ({"id": call.id} if call.id else {})
                | {"type": "function"}
                | {"function": {"name": call.name, "arguments": given(call.arguments)}}
                for call in self.calls
            ]
        if self.call_id:
            message["tool_call_id"] = self.call_id
        if self.name:
            message["name"] = self.name
        if self.reasoning:
            # Templates read it under one of these names.
            message |= dict.fromkeys(("reasoning", "reasoning_content", "thinking"), self.reasoning)
        return message


class Tool(Struct, frozen=True, array_like=True):
    """A tool: a function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    is_strict: bool = False
    """Whether arguments have to match the schema; templates do not get to know."""

    def as_tool(self) -> dict[str, object]:
        """Return the tool as templates expect it."""
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


class Conversation(Struct, frozen=True):
    """A conversation: all that a request passes to a template."""

    messages: list[Message]
    tools: list[Tool] = []
    variables: dict[str, Any] = {}
    """Further variables of the template; JSON values."""
    has_text_arguments: bool = False
    """Whether the template gets the arguments of calls as a string, not as an object."""
    lists_contents: bool = False
    """Whether the template gets each content as a list of parts, even one that is a string."""

    @property
    def num_images(self) -> int:
        """The number of images."""
        return sum(message.parts.count(None) for message in self.messages)

    @property
    def has_more(self) -> bool:
        """Whether there is anything besides roles and contents."""
        return bool(self.tools or self.variables) or any(
            message.calls or message.call_id or message.name or message.reasoning
            for message in self.messages
        )


class Piece(Struct, frozen=True, array_like=True):
    """A part of a rendered conversation."""

    text: str
    is_token: bool
    """Whether it is an added token of the tokenizer that the template wrote."""


class TemplateTokens(Struct, frozen=True):
    """The added tokens of a tokenizer, and the template variables for tokens."""

    control: tuple[str, ...] = ()
    """Control tokens, such as `</s>`."""
    added: tuple[str, ...] = ()
    """Other tokens, such as `<think>`."""
    variables: dict[str, str] = {}
    """Variable -> token, such as `bos_token`."""


class Setup(Struct, frozen=True):
    """The first message to a renderer process."""

    template_tokens: TemplateTokens
    """The base model's."""
    cpu_seconds: float = 1.0
    """Limit on the CPU time of one rendering."""


class Render(Struct, frozen=True):
    """A request to render a conversation."""

    template: str
    conversation: Conversation
    add_generation_prompt: bool
    own: TemplateTokens = TemplateTokens()
    """The adapter's, added to the base model's; its variables take precedence."""


class Rendered(Struct, frozen=True, tag=True):
    """What the template wrote, in order."""

    pieces: list[Piece]


class Refused(Struct, frozen=True, tag=True):
    """The template rejected the messages, or they would forge a control token."""

    message: str


class Failed(Struct, frozen=True, tag=True):
    """The template cannot be run, or exceeded a limit."""

    message: str


Answer = Rendered | Refused | Failed

encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_render = msgspec.msgpack.Decoder(Render).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
