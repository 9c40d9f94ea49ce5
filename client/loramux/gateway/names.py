"""Translates the server's field names in errors to those of the caller's request."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MODEL_FIELDS = ("adapter", "name")

_PARAMS = {
    "adapter": "model",
    "name": "model",
    "prompt_token_ids": "prompt",
    "routing_key": "user",
    "include_stop": "include_stop_str_in_output",
    "num_beams": "best_of",
}
"""Field of the server's request -> OpenAI's field, where the names differ."""
_FORMS = {
    "structured_output.json_schema": "response_format",
    "structured_output.json_object": "response_format",
    "structured_output.choice.texts": "structured_outputs.choice",
    "structured_output.": "structured_outputs.",
}
"""The same for structured output; applied to the text of error messages, too."""
_IMAGE = re.compile(r"(messages\[\d+\])\.parts(\[\d+\])\.image\b")
"""The server's name of an image, which in OpenAI's API is a content part."""
_OF_FUNCTION = re.compile(
    r"((?:^|\.)tool(?:s|_calls)\[\d+\]|^tool_choice)"
    r"\.(?=(?:name|description|parameters|strict|arguments)\b)"
)
"""The prefix of fields that belong to `function` in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class Names:
    """The field names of chats, completions, and requests that embed or classify."""

    called: Mapping[str, str] = field(default_factory=dict)
    """Field of the server's request, without `sampling.` -> the request's own field."""

    def param(self, name: str) -> str | None:
        """Return the request's name for the field `name`; None if `name` is empty."""
        name = name.removeprefix("sampling.")
        if theirs := self.called.get(name):
            return theirs
        name = self.in_field(name)
        mixed = re.fullmatch(r"(adapters\[\d+\])\.(adapter|weight)", name)
        if mixed:
            return f"{mixed[1]}.{'name' if mixed[2] == 'adapter' else 'scale'}"
        return _PARAMS.get(name, name) or None

    def message(self, text: str, name: str) -> str:
        """Return `text`, a message about the field `name`, with the request's names."""
        param, name = self.param(name), name.removeprefix("sampling.")
        text = text.replace("sampling.", "")
        # Only at the start: elsewhere it may be part of a value, or mean an adapter.
        if name not in MODEL_FIELDS and re.match(re.escape(name) + r"\b", text):
            text = (param or "") + text.removeprefix(name)
        text = self.in_text(text)
        if name in ("prompt", "messages"):
            text = text.replace("prompt_token_ids", "token ids as prompt")
        if name == "prediction":
            text = text.replace("set prediction_token_ids", "leave it out")
        return text

    def in_field(self, name: str) -> str:
        """Return `name` with the request's names for parts, tools and structured output."""
        return _OF_FUNCTION.sub(r"\1.function.", self.in_text(name))

    def in_text(self, text: str) -> str:
        """Return `text` with the request's names for images and structured output."""
        text = _IMAGE.sub(r"\1.content\2.image_url", text)
        for ours, theirs in _FORMS.items():
            text = text.replace(ours, theirs)
        return text
