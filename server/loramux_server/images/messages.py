"""Images as exchanged between the preprocessing process, the frontend and the engine.

Typed structs in MessagePack, each with a length prefix, as between frontend and engine.
"""

import msgspec
from msgspec import Struct


class Array(Struct, frozen=True, array_like=True):
    """An array in C order."""

    dtype: str
    """Name of the numpy dtype."""
    shape: list[int]
    data: bytes


class Image(Struct, frozen=True):
    """A preprocessed image: the base model's input."""

    digest: bytes
    """BLAKE2b of its tokens and arrays, 32 bytes; identifies it in prefix caching."""
    arrays: dict[str, Array]
    """The output of transformers' image processor by name, such as pixel_values."""

    @property
    def num_bytes(self) -> int:
        """Size of the arrays."""
        return sum(len(array.data) for array in self.arrays.values())


class PreparedImage(Struct, frozen=True):
    """An image and the tokens that stand for it in a prompt."""

    tokens: list[int]
    """These replace the placeholder token that the template writes. Text around it is not
    included."""
    image: Image


class PlacedImage(Struct, frozen=True):
    """An image in a prompt."""

    start: int
    """Position of its first token."""
    length: int
    """Number of its tokens. Those that are the model's image token get one embedding of the image
    each; others, such as line breaks, are ordinary tokens."""
    image: Image


class Setup(Struct, frozen=True):
    """Settings of the process that preprocesses images."""

    path: str
    """Folder of the base model, or of its processor alone."""
    max_pixels: int
    """Limit of pixels per image."""
    cpu_seconds: float = 10.0
    """Limit of processor time per image."""


class Placeholder(Struct, frozen=True):
    """What stands for an image in the prompt before it is preprocessed."""

    token: int
    """The token that templates write."""
    before: str = ""
    """Text to put before it. It is tokenized with the prompt's text, and may share a token with
    what the template wrote there, such as a line break."""
    after: str = ""
    """Text to put after it, likewise."""


class Loaded(Struct, frozen=True, tag=True):
    """The process is ready."""

    placeholder: Placeholder


class Unavailable(Struct, frozen=True, tag=True):
    """The folder has no usable processor."""

    message: str


class Prepared(Struct, frozen=True, tag=True):
    """The image was preprocessed."""

    prepared: PreparedImage


class Refused(Struct, frozen=True, tag=True):
    """The bytes are not an acceptable image; the message is for callers."""

    message: str


Answer = Loaded | Unavailable | Prepared | Refused

encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
