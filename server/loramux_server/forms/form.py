"""A form that a text must have, as a request asks for it."""

import enum

from msgspec import Struct

MAX_BYTES = 64 << 10
"""Of all texts of a form together."""
MAX_CHOICES = 1024
MAX_NESTING = 64
"""How deep arrays and objects of a JSON schema may lie in each other."""


class FormKind(enum.StrEnum):
    """What asks for it: a field of `loramux.v1.StructuredOutput`, or a choice of tools."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    TOOL_CALLS = "tool_calls"
    """Rules of ours, the first of them `answer`, in which added tokens have their numbers."""


class Form(Struct, frozen=True):
    """A form."""

    kind: FormKind
    text: str = ""
    """The schema, regular expression or grammar."""
    choices: tuple[str, ...] = ()
    before: str = ""
    """Rules of a grammar of what comes before it, first `before`; empty where nothing does."""

    @property
    def field(self) -> str:
        """The field of a request that asks for it."""
        if self.kind is FormKind.TOOL_CALLS:
            return "tools"
        return f"sampling.structured_output.{self.kind}"

    def __repr__(self) -> str:
        # What a user wrote is in no log.
        return f"Form({self.kind.value})"
