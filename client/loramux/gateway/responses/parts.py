"""Content parts of input items -> content parts of chat messages."""

from collections.abc import Mapping, Sequence

import msgspec

from loramux.gateway.kinds import of_kind
from loramux.gateway.refusal import invalid, unsupported

Part = dict[str, object]


class Text(msgspec.Struct, forbid_unknown_fields=True):
    """`input_text` or `output_text`; annotations and log-probabilities are ignored."""

    text: str
    annotations: list[object] = []
    logprobs: list[object] = []
    prompt_cache_breakpoint: object = None
    """Ignored: every full block of a prompt is cached."""


class Refusal(msgspec.Struct, forbid_unknown_fields=True):
    """`refusal`, which OpenAI's models return instead of text."""

    refusal: str


class Image(msgspec.Struct, forbid_unknown_fields=True):
    """`input_image`."""

    image_url: str | None = None
    detail: str | None = None
    file_id: object = None
    prompt_cache_breakpoint: object = None


_KINDS: Mapping[str, type[Text | Refusal | Image]] = {
    "input_text": Text, "output_text": Text, "input_image": Image, "refusal": Refusal,
}  # fmt: skip


def parts_of(name: str, content: str | Sequence[Part]) -> str | list[Part]:
    """Return `content`, the field `name` of an item, as the content of a chat message.

    Raises:
        InvalidArgumentError: A part is not supported; the error names it.
    """
    if isinstance(content, str):
        return content
    return [_part(f"{name}[{place}]", part) for place, part in enumerate(content)]


def _part(name: str, given: Part) -> Part:
    part = of_kind(name, given, _KINDS)
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Refusal):
        return {"type": "text", "text": part.refusal}
    if part.file_id is not None:
        raise unsupported(
            f"{name}.file_id",
            f"{name}.file_id is {part.file_id!r:.100}; files are not stored: give the image "
            "itself as image_url, 'data:image/png;base64,…'",
        )
    if part.image_url is None:
        raise invalid(name, f"{name} needs image_url, 'data:image/png;base64,…'")
    return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
