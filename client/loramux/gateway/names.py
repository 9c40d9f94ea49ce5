"""What a request calls the fields that errors name as the server does."""

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
"""Field of the server's request -> field of OpenAI's, where they are called differently."""
_FORMS = {
    "structured_output.json_schema": "response_format",
    "structured_output.json_object": "response_format",
    "structured_output.choice.texts": "structured_outputs.choice",
    "structured_output.": "structured_outputs.",
}
"""The same of what asks for a form, also where it is named in a message."""
_IMAGE = re.compile(r"(messages\[\d+\])\.parts(\[\d+\])\.image\b")
"""Our name of an image, which to OpenAI is a part of a content."""
_OF_FUNCTION = re.compile(
    r"((?:^|\.)tool(?:s|_calls)\[\d+\]|^tool_choice)"
    r"\.(?=(?:name|description|parameters|strict|arguments)\b)"
)
"""What stands before the name of a field that to OpenAI is one of a function."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that chats, completions and what reads texts have for fields."""

    called: Mapping[str, str] = field(default_factory=dict)
    """Field of the server's sampling -> what the request has in its place."""

    def param(self, name: str) -> str | None:
        """Return what the request calls the field `name`; None where no field is meant."""
        name = name.removeprefix("sampling.")
        if theirs := self.called.get(name):
            return theirs
        name = self.in_field(name)
        mixed = re.fullmatch(r"(adapters\[\d+\])\.(adapter|weight)", name)
        if mixed:
            return f"{mixed[1]}.{'name' if mixed[2] == 'adapter' else 'scale'}"
        return _PARAMS.get(name, name) or None

    def message(self, text: str, name: str) -> str:
        """Return `text`, which is about the field `name`, with the names of the request."""
        param, name = self.param(name), name.removeprefix("sampling.")
        text = text.replace("sampling.", "")
        # Not everywhere: values of the caller may be in it, and adapters are called so, too.
        if name not in MODEL_FIELDS and re.match(re.escape(name) + r"\b", text):
            text = (param or "") + text.removeprefix(name)
        text = self.in_text(text)
        if name in ("prompt", "messages"):
            text = text.replace("prompt_token_ids", "token ids as prompt")
        if name == "prediction":
            text = text.replace("set prediction_token_ids", "leave it out")
        return text

    def in_field(self, name: str) -> str:
        """Return the field `name` as the request calls parts of messages, tools and forms."""
        return _OF_FUNCTION.sub(r"\1.function.", self.in_text(name))

    def in_text(self, text: str) -> str:
        """Return `text` with such names in it."""
        text = _IMAGE.sub(r"\1.content\2.image_url", text)
        for ours, theirs in _FORMS.items():
            text = text.replace(ours, theirs)
        return text
