"""Images in the messages of a request: validation, and their place in the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.config import ServerConfig
from loramux_server.field_errors import wrong
from loramux_server.images.messages import PlacedImage, Placeholder, PreparedImage
from loramux_server.wire.model_info import ModelInfo


class Preparer(Protocol):
    """Preprocesses images for the base model."""

    async def placeholder(self, tenant: str) -> Placeholder:
        """Return the placeholder for an image of `tenant` before it is prepared."""

    async def prepare(self, data: bytes, field: str, tenant: str) -> PreparedImage:
        """Return the image in the file `data` of `tenant`, from the request field `field`."""

    async def close(self) -> None:
        """Stop what was started."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on the images of a request."""

    max_images: int
    """0 if no images are accepted."""
    max_bytes: int
    """Per image file."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its images."""

    tokens: list[int]
    images: list[PlacedImage]
    """In the order of the prompt."""


def max_images(model: ModelInfo, config: ServerConfig) -> int:
    """Return how many images a request may have."""
    return config.max_images if model.supports_images else 0


def images_of(
    request: generation_pb2.GenerateRequest,
) -> Iterator[tuple[str, generation_pb2.Image]]:
    """Yield the images of `request` in order, as (path of the field, image)."""
    for i, message in enumerate(request.messages):
        for j, part in enumerate(message.parts):
            if part.HasField("image"):
                yield f"messages[{i}].parts[{j}].image", part.image


def check_images(
    request: generation_pb2.GenerateRequest, model: ModelInfo, limits: ImageLimits
) -> None:
    """Check that the images of `request`, if any, are supported and within `limits`.

    Raises:
        FailedPreconditionError: The base model takes no images, or the server accepts none.
        InvalidArgumentError: There are too many, or one is too large or empty.
    """
    found = list(images_of(request))
    if not found:
        return
    first, _ = found[0]
    if not limits.max_images:
        raise _not_served(first, "is set, but this server accepts no images (--max-images 0)")
    if not model.supports_images:
        raise _not_served(first, f"is set, but {model.no_vision_message}")
    if len(found) > limits.max_images:
        raise wrong("messages", f"has {len(found)} images; expected at most {limits.max_images}")
    for field, image in found:
        size = len(image.data)
        if not size:
            raise wrong(field, "is empty; expected the bytes of an image file")
        if size > limits.max_bytes:
            raise wrong(field, f"has {size} bytes; expected at most {limits.max_bytes}")


def check_written(tokens: Sequence[int], placeholder: int, num_images: int) -> None:
    """Check that the chat template put exactly the images of the messages into the prompt.

    Args:
        tokens: The rendered and tokenized prompt.
        placeholder: The token that stands for an image.
        num_images: Number of images in the messages.

    Raises:
        FailedPreconditionError: It did not.
    """
    num_written = tokens.count(placeholder)
    if num_written != num_images:
        raise _not_served(
            "messages",
            f"has {num_images} images, but the chat template puts {num_written} into the prompt: "
            "it does not support images, or not in messages of these roles; omit them, or pack "
            "the adapter with another --chat-template",
        )


def check_room(num_tokens: int, images: Sequence[PreparedImage], model: ModelInfo) -> None:
    """Check that the prompt fits the context with the images prepared so far.

    Args:
        num_tokens: Tokens of the prompt, with one for each image.
        images: The images prepared so far.
        model: The base model.

    Raises:
        InvalidArgumentError: It does not.
    """
    num_image_tokens = sum(len(image.tokens) for image in images)
    num_all = num_tokens - len(images) + num_image_tokens
    if num_all > model.context_length:
        stand = f" ({num_image_tokens} of them for {len(images)} images)" if images else ""
        raise InvalidArgumentError(
            f"messages have {num_all} tokens{stand}; the context of {model.context_length} is "
            "smaller",
            reason="CONTEXT_LENGTH_EXCEEDED",
            field="messages",
        )


def placed(tokens: Sequence[int], placeholder: int, images: Sequence[PreparedImage]) -> Prompt:
    """Return a prompt with `images` in place of the placeholders in `tokens`, in order."""
    left = iter(images)
    found: list[int] = []
    places: list[PlacedImage] = []
    for token in tokens:
        if token != placeholder:
            found.append(token)
            continue
        image = next(left)
        places.append(PlacedImage(len(found), len(image.tokens), image.image))
        found += image.tokens
    return Prompt(found, places)


def _not_served(field: str, message: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{field} {message}", reason="IMAGES_NOT_SERVED", field=field)
