"""Translates field names in the server's errors to those of Anthropic's API."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loramux.gateway.names import Names

_SCHEMA = "structured_output.json_schema"
_FIELDS = {
    "stop": "stop_sequences",
    "routing_key": "metadata.user_id",
    "tool_choice.mode": "tool_choice.type",
    _SCHEMA: "output_config.format.schema",
}
"""Field of the server's request -> field of Anthropic's, where the names differ."""
_MESSAGE = re.compile(
    r"messages\[(\d+)\]"
    r"(?:\.(content|tool_call_id|parts\[(\d+)\]\.image|tool_calls\[(\d+)\]))?(?=[.\[]|$)"
)
_PARTS = (
    (re.compile(r"^(tools\[\d+\])\.parameters\b"), r"\1.input_schema"),
    (re.compile(r"(\.tool_calls\[\d+\])\.arguments\b"), r"\1.input"),
)
"""The same for parts of a field's path."""


@dataclass(frozen=True, slots=True)
class Source:
    """The fields of a request that a message for the server was made from."""

    name: str
    """The first message or block that it was made from."""
    is_result: bool
    """Whether it is a tool's result."""
    parts: Sequence[str]
    """The field of each part."""
    calls: Sequence[str]
    """The block of each call."""


@dataclass(frozen=True, slots=True)
class MessageNames(Names):
    """The names of fields in Anthropic's API."""

    sources: Sequence[Source] = ()
    """One for each message of the server's request."""

    def in_field(self, name: str) -> str:
        """See `Names`."""
        for ours, theirs in _PARTS:
            name = ours.sub(theirs, name)
        if message := _MESSAGE.match(name):
            return self._theirs(message) + name[message.end() :]
        # The longest known prefix.
        for end in [*(found.start() for found in re.finditer(r"[.\[]", name)), len(name)][::-1]:
            found = _FIELDS.get(name[:end])
            if found is not None:
                return found + name[end:]
        return name

    def in_text(self, text: str) -> str:
        """See `Names`."""
        return text.replace(_SCHEMA, _FIELDS[_SCHEMA])

    def _theirs(self, found: re.Match[str]) -> str:
        index, field, part, call = found.groups()
        if int(index) >= len(self.sources):
            return found[0]
        source = self.sources[int(index)]
        if part is not None and int(part) < len(source.parts):
            return source.parts[int(part)]
        if call is not None and int(call) < len(source.calls):
            return source.calls[int(call)]
        if field == "content":
            return source.parts[0] if source.parts else source.name
        if field == "tool_call_id" and source.is_result:
            return f"{source.name}.tool_use_id"
        return source.name + (f".{field}" if field else "")
