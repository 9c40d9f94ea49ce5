"""Tools and tool calls in request bodies."""

from typing import Literal

import msgspec


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema."""
    strict: bool | None = None


class Tool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """A tool; of OpenAI's types, only functions are supported."""

    function: Function


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class NamedTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """The tool that the model must call."""

    function: FunctionName


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The function that an assistant called, with its arguments."""

    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call of an assistant."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"
    index: int | None = None
    """Its index in a stream, accepted from clients that resend it."""
