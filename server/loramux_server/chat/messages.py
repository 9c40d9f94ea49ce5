"""What the frontend and a process that renders templates say to each other.

Typed structs in MessagePack, each preceded by its length, as between frontend and engine.
"""

import json
from typing import Any

import msgspec
from msgspec import Struct

MARKS = "\U000f0000-\U0010fffd"
"""Private characters of Unicode, the first and the last, that can stand for others while a template
is rendered. More of them than a request can hold."""


class Call(Struct, frozen=True, array_like=True):
    """A call of a tool, as an assistant asked for it."""

    id: str
    """Empty where it has none."""
    name: str
    arguments: dict[str, Any]
    """JSON's values."""


class Turn(Struct, frozen=True, array_like=True):
    """One message of a conversation."""

    role: str
    content: str
    calls: list[Call] = []
    """What an assistant asked for."""
    call_id: str = ""
    """Of which call a tool's message is the result."""
    name: str = ""
    """Of the tool, where the message tells."""
    reasoning: str = ""
    """What an assistant thought before."""
    parts: list[str | None] = []
    """In place of the content, texts and images in their order; None is an image."""

    @property
    def texts(self) -> list[str]:
        """The texts of its content."""
        return [text for text in self.parts if text is not None] or [self.content]

    def as_message(
        self, *, has_text_arguments: bool = False, lists_contents: bool = False
    ) -> dict[str, object]:
        """Return what templates call a message.

        Args:
            has_text_arguments: Whether arguments of calls are a text, and not an object.
            lists_contents: Whether a content that is a text is a list with that text.
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
            # transformers knows it by these names.
            message |= dict.fromkeys(("reasoning", "reasoning_content", "thinking"), self.reasoning)
        return message


class Tool(Struct, frozen=True, array_like=True):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    is_strict: bool = False
    """Whether arguments always meet it, which no template is told."""

    def as_tool(self) -> dict[str, object]:
        """Return what templates call a tool."""
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


class Talk(Struct, frozen=True):
    """All that a request gives to a template."""

    turns: list[Turn]
    tools: list[Tool] = []
    variables: dict[str, Any] = {}
    """What else the template may name; JSON's values."""
    has_text_arguments: bool = False
    """Whether the template is given the arguments of calls as text, and not as an object."""
    lists_contents: bool = False
    """Whether the template is given each content as a list of parts, also one that is a text."""

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return sum(turn.parts.count(None) for turn in self.turns)

    @property
    def has_more(self) -> bool:
        """Whether there is anything beside roles and contents."""
        return bool(self.tools or self.variables) or any(
            turn.calls or turn.call_id or turn.name or turn.reasoning for turn in self.turns
        )


class Piece(Struct, frozen=True, array_like=True):
    """A part of what a template wrote."""

    text: str
    is_token: bool
    """Whether it is an added token of the tokenizer, and no part of a message's content."""


class Words(Struct, frozen=True):
    """What a tokenizer looks for in a text before all else, and templates have names for."""

    control: tuple[str, ...] = ()
    """Control tokens, such as `</s>`."""
    added: tuple[str, ...] = ()
    """Other tokens, such as `<think>`."""
    variables: dict[str, str] = {}
    """What templates may name, such as `bos_token`."""


class Setup(Struct, frozen=True):
    """What a renderer needs to know before it renders."""

    words: Words
    """The base model's."""
    cpu_seconds: float = 1.0
    """Processor time that one rendering may take."""


class Render(Struct, frozen=True):
    """Render a conversation."""

    template: str
    talk: Talk
    add_generation_prompt: bool
    own: Words = Words()
    """What an adapter has beside the base model's; its variables go before those."""


class Rendered(Struct, frozen=True, tag=True):
    """What a template wrote, in order."""

    pieces: list[Piece]


class Refused(Struct, frozen=True, tag=True):
    """A template said that it does not take these messages."""

    message: str


class Failed(Struct, frozen=True, tag=True):
    """A template cannot be run, or broke one of its limits."""

    message: str


Answer = Rendered | Refused | Failed

encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_render = msgspec.msgpack.Decoder(Render).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
