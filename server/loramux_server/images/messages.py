"""What an image is to the process that prepares it, to the frontend, and to the engine.

Typed structs in MessagePack, each preceded by its length, as between frontend and engine.
"""

import msgspec
from msgspec import Struct


class Array(Struct, frozen=True, array_like=True):
    """Numbers, in the order of C."""

    dtype: str
    """numpy's name for their format."""
    shape: list[int]
    data: bytes


class Image(Struct, frozen=True):
    """An image as a base model takes it."""

    digest: bytes
    """BLAKE2b of its tokens and arrays, 32 bytes: what it is known by in prefixes."""
    arrays: dict[str, Array]
    """What transformers' image processor made of it, by its names, such as pixel_values."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(len(array.data) for array in self.arrays.values())


class PreparedImage(Struct, frozen=True):
    """An image, and what stands for it in a prompt."""

    tokens: list[int]
    """What takes the place of the token that a template writes for an image. Text around it is
    there already."""
    image: Image


class PlacedImage(Struct, frozen=True):
    """An image in a prompt."""

    start: int
    """Position of the first of its tokens."""
    length: int
    """Number of its tokens. Those of them that are the model's own token for images get an
    embedding of the image each; others, such as line breaks, are ordinary."""
    image: Image


class Setup(Struct, frozen=True):
    """What a process needs to know before it prepares images."""

    path: str
    """Folder or hub id of the base model."""
    max_pixels: int
    """Pixels that an image may have."""
    revision: str | None = None
    """That of the hub id; None means what the hub has now."""
    cpu_seconds: float = 10.0
    """Processor time that one image may take."""


class Placeholder(Struct, frozen=True):
    """What stands for an image before it is prepared."""

    token: int
    """What templates write."""
    before: str = ""
    """Text that is put before it. It is a part of the prompt's text, and may share a token with
    what the template wrote there, such as a line break."""
    after: str = ""
    """Text that is put after it, likewise."""


class Loaded(Struct, frozen=True, tag=True):
    """The process is ready."""

    placeholder: Placeholder


class Unavailable(Struct, frozen=True, tag=True):
    """The folder has no processor that can be used."""

    message: str


class Prepared(Struct, frozen=True, tag=True):
    """What became of an image."""

    prepared: PreparedImage


class Refused(Struct, frozen=True, tag=True):
    """The bytes are no image that is taken; the message is for callers."""

    message: str


Answer = Loaded | Unavailable | Prepared | Refused

encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
