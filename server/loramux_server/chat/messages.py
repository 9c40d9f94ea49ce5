"""What the frontend and a process that renders templates say to each other.

Typed structs in MessagePack, each preceded by its length, as between frontend and engine.
"""

import msgspec
from msgspec import Struct


class Turn(Struct, frozen=True, array_like=True):
    """One message of a conversation."""

    role: str
    content: str


class Piece(Struct, frozen=True, array_like=True):
    """A part of what a template wrote."""

    text: str
    is_token: bool
    """Whether it is an added token of the tokenizer, and no part of a message's content."""


class Setup(Struct, frozen=True):
    """What a renderer needs to know before it renders."""

    control: list[str]
    """The tokenizer's control tokens, such as `</s>`."""
    added: list[str]
    """Other tokens that it looks for in a text before all else, such as `<think>`."""
    variables: dict[str, str]
    """What every template may name, such as `bos_token`."""
    cpu_seconds: float = 1.0
    """Processor time that one rendering may take."""


class Render(Struct, frozen=True):
    """Render a conversation."""

    template: str
    turns: list[Turn]
    add_generation_prompt: bool


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
