"""Translates field names in errors, the server's or those of chats, to those of `/v1/responses`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from loramux.gateway.names import Names

_MESSAGE = re.compile(
    r"messages\[(\d+)\](?:\.(content|parts|reasoning|tool_call_id|tool_calls\[(\d+)\](\.id)?)(?!\w))?"
)
_IMAGE = re.compile(r"(?<=\])\.image\b")
_FORMS = {
    "structured_output.json_schema": "text.format.schema",
    "structured_output.json_object": "text.format",
    "structured_output.choice.texts": "structured_outputs.choice",
    "structured_output.": "structured_outputs.",
    "response_format": "text.format",
}


@dataclass(slots=True)
class Source:
    """The fields that a chat message was made from."""

    item: str
    """The first item of the message."""
    content: str
    reasoning: str = ""
    calls: list[str] = field(default_factory=list)
    """The item of each call."""


@dataclass(frozen=True, slots=True)
class ResponsesNames(Names):
    """The names of `/v1/responses`, where messages are named after their items."""

    sources: Sequence[Source] = ()
    """One for each message."""

    def in_field(self, name: str) -> str:
        """See `Names`."""
        # Without sources, the error is about the body itself, which has a field `prompt`.
        is_all = name == "messages" or (name == "prompt" and bool(self.sources))
        return "input" if is_all else self.in_text(name)

    def in_text(self, text: str) -> str:
        """See `Names`."""
        text = _IMAGE.sub(".image_url", _MESSAGE.sub(self._theirs, text))
        for ours, theirs in _FORMS.items():
            text = text.replace(ours, theirs)
        return text

    def _theirs(self, found: re.Match[str]) -> str:
        index, part, call, is_id = found.groups()
        if int(index) >= len(self.sources):
            return found[0]
        source = self.sources[int(index)]
        if call is not None and int(call) < len(source.calls):
            return source.calls[int(call)] + (".call_id" if is_id else "")
        if part in ("content", "parts"):
            return source.content
        if part == "reasoning":
            return source.reasoning
        return source.item + (".call_id" if part == "tool_call_id" else "")
