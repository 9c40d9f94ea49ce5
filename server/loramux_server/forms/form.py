"""A form: the structured-output constraint that a request puts on its text."""

import enum

from msgspec import Struct

MAX_BYTES = 64 << 10
"""UTF-8 bytes of all strings of a form together."""
MAX_CHOICES = 1024
MAX_NESTING = 64
"""Arrays and objects of a JSON schema must be nested less deep than this."""


class FormKind(enum.StrEnum):
    """Where a form comes from: a field of `loramux.v1.StructuredOutput`, or the request's tools."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    TOOL_CALLS = "tool_calls"
    """Our own Lark rules, starting with `answer`, which refer to added tokens by id."""


class Form(Struct, frozen=True):
    """A constraint on generated text."""

    kind: FormKind
    text: str = ""
    """The schema, regular expression or grammar."""
    choices: tuple[str, ...] = ()
    before: str = ""
    """Lark rules for what precedes the form, starting with `before`; empty if nothing does."""

    @property
    def field(self) -> str:
        """The request field that asks for it."""
        if self.kind is FormKind.TOOL_CALLS:
            return "tools"
        return f"sampling.structured_output.{self.kind}"

    def __repr__(self) -> str:
        # User content must not reach the logs.
        return f"Form({self.kind.value})"
