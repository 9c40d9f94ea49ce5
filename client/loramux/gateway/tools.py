"""Tools and calls of them, as bodies of requests have them."""

from typing import Literal

import msgspec


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema."""
    strict: bool | None = None


class Tool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """A tool; of OpenAI's kinds, functions are served."""

    function: Function


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class NamedTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """The tool that has to be called."""

    function: FunctionName


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """What an assistant called."""

    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call that an assistant asked for."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"
    index: int | None = None
    """Its place in a stream, which may come back with it."""
