"""Translates field names in the server's errors to those of Anthropic's API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramux.gateway.names import Names

_SCHEMA = "structured_output.json_schema"
_FIELDS = {
    "stop": "stop_sequences",
    "routing_key": "metadata.user_id",
    "tool_choice.mode": "tool_choice.type",
    _SCHEMA: "output_config.format.schema",
}
"""Field of the server's request -> field of Anthropic's, where the names differ."""
_PARTS = (
    (re.compile(r"^(tools\[\d+\])\.parameters\b"), r"\1.input_schema"),
    (re.compile(r"(\.tool_calls\[\d+\])\.arguments\b"), r"\1.input"),
)
"""The same for parts of a name."""


@dataclass(frozen=True, slots=True)
class MessageNames(Names):
    """The names of fields in Anthropic's API."""

    places: Mapping[str, str] = field(default_factory=dict)
    """Field of the server's messages -> field of the request; see `Turns.names`."""

    def in_field(self, name: str) -> str:
        """See `Names`."""
        for ours, theirs in _PARTS:
            name = ours.sub(theirs, name)
        # The longest known prefix.
        for end in [*(found.start() for found in re.finditer(r"[.\[]", name)), len(name)][::-1]:
            found = self.places.get(name[:end], _FIELDS.get(name[:end]))
            if found is not None:
                return found + name[end:]
        return name

    def in_text(self, text: str) -> str:
        """See `Names`."""
        return text.replace(_SCHEMA, _FIELDS[_SCHEMA])
