"""Content blocks."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from loramux.gateway.kinds import of_kind
from loramux.gateway.refusal import check_one_of, invalid, unsupported
from loramux.types import Image

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")


class TextBlock(msgspec.Struct, forbid_unknown_fields=True):
    """A text."""

    text: str
    cache_control: object = None
    citations: object = None
    """Ignored: templates have no field for it."""


class ImageSource(msgspec.Struct, forbid_unknown_fields=True):
    """The source of an image."""

    type: str
    media_type: str = ""
    data: str = ""
    url: object = None
    file_id: object = None


class ImageBlock(msgspec.Struct, forbid_unknown_fields=True):
    """An image."""

    source: ImageSource
    cache_control: object = None
    transformations: None = None


class ToolUseBlock(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call of an assistant."""

    id: str
    name: str
    input: dict[str, object]
    cache_control: object = None
    caller: object = None
    """Always the model itself."""
    toolset_name: None = None


class ToolResultBlock(msgspec.Struct, forbid_unknown_fields=True):
    """The result of a tool call."""

    tool_use_id: str
    content: str | list[dict[str, object]] | None = None
    is_error: bool | None = None
    cache_control: object = None
    toolset_name: None = None


class ThinkingBlock(msgspec.Struct, forbid_unknown_fields=True):
    """The reasoning of an assistant."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(msgspec.Struct, forbid_unknown_fields=True):
    """Encrypted reasoning, which only Anthropic can read; ignored."""

    data: str


Block: TypeAlias = (
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
)

Kinds: TypeAlias = Mapping[str, type[Block]]

OF_SYSTEM: Kinds = {"text": TextBlock}
OF_RESULT: Kinds = {"text": TextBlock, "image": ImageBlock}
OF_USER: Kinds = {**OF_RESULT, "tool_result": ToolResultBlock}
OF_ASSISTANT: Kinds = {
    "text": TextBlock, "thinking": ThinkingBlock, "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
}  # fmt: skip
"""The blocks that each kind of content may have, by type."""


def blocks_of(
    name: str, content: str | Sequence[Mapping[str, object]], known: Kinds
) -> list[tuple[str, Block]]:
    """Return the blocks in the field `name`, each with its own field.

    Raises:
        InvalidArgumentError: One is malformed, or its type is not one of `known`.
    """
    if isinstance(content, str):
        return [(name, TextBlock(content))]
    return [
        (f"{name}[{place}]", of_kind(f"{name}[{place}]", block, known))
        for place, block in enumerate(content)
    ]


def image_of(name: str, block: ImageBlock) -> Image:
    """Return the image of the block in the field `name`.

    Raises:
        InvalidArgumentError: The source is not base64, or not an image type.
    """
    source, name = block.source, f"{name}.source"
    if source.type != "base64":
        raise unsupported(
            f"{name}.type",
            f"{name}.type is {source.type!r}; expected 'base64', with media_type and data: images "
            "are not downloaded",
        )
    check_one_of(f"{name}.media_type", source.media_type, _MEDIA_TYPES)
    try:
        return Image.from_data_url(f"data:{source.media_type};base64,{source.data}")
    except ValueError as error:
        raise invalid(f"{name}.data", f"{name}.data {error}") from None
