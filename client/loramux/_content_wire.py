"""Message contents, texts and images: conversion to protobuf messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from loramux._fitting import fitting
from loramux._image import Image
from loramux._tool_types import ContentPart
from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2


def add_content(
    field: str, content: str | Sequence[ContentPart], message: generation_pb2.ChatMessage
) -> None:
    """Add `content` to the message of the field `field`; several texts without images are joined.

    Raises:
        InvalidArgumentError: It is not a content, or a part is neither text nor image.
    """
    if isinstance(content, str):
        with fitting(field):
            message.content = content
        return
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise InvalidArgumentError(
            f"{field}.content is a {type(content).__name__}; expected text, or a list of texts and "
            "images",
            reason="INVALID_FIELD",
            field=f"{field}.content",
        )
    parts: list[generation_pb2.ContentPart] = []
    for index, part in enumerate(content):
        with fitting(f"{field}.content[{index}]"):
            parts.append(_part(part))
    if any(part.HasField("image") for part in parts):
        message.parts.extend(parts)
    else:
        message.content = "".join(part.text for part in parts)


def openai_image(part: Mapping[str, Any]) -> Image:
    """Return the image of OpenAI's `{"type": "image_url", "image_url": {"url": "data:…"}}`.

    Raises:
        ValueError: It is malformed; the message continues after the name of the part.
    """
    given = part.get("image_url")
    if not isinstance(given, Mapping) or not isinstance(given.get("url"), str) or len(part) > 2:
        raise ValueError("needs image_url, an object with a url, and no other fields")
    for name, value in given.items():
        if name == "detail" and value not in (None, "auto"):
            raise ValueError(
                f"has detail {value!r}; expected 'auto': the resolution cannot be chosen"
            )
        if name not in ("url", "detail"):
            raise ValueError(f"has {name!r} in image_url; expected only url")
    try:
        return Image.from_data_url(given["url"])
    except ValueError as error:
        raise ValueError(f"has a url that {error}") from None


def _part(part: ContentPart) -> generation_pb2.ContentPart:
    if isinstance(part, Mapping):
        part = _of_openai(part)
    if isinstance(part, str):
        return generation_pb2.ContentPart(text=part)
    if isinstance(part, bytes):
        part = Image(part)
    if not isinstance(part, Image):
        raise ValueError(f"is a {type(part).__name__}; expected text, an Image, or its bytes")
    return generation_pb2.ContentPart(image=generation_pb2.Image(data=part.data))


def _of_openai(part: Mapping[str, Any]) -> str | Image:
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str) or len(part) > 2:
            raise ValueError("needs text, a string, and no other fields")
        return str(part["text"])
    if kind != "image_url":
        raise ValueError(f"has type {kind!r}; expected 'text' or 'image_url'")
    return openai_image(part)
