"""Images in messages."""

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_KINDS = ("png", "jpeg", "webp", "gif")
_JPG = "jpg"
"""Common file extension for jpeg."""
_BASE64 = ";base64"
_SHOWN = 40
"""Characters of a URL that error messages show."""


@dataclass(frozen=True, slots=True, repr=False)
class Image:
    """An image in a message: a PNG, JPEG, WebP or GIF file.

    >>> client.chat([{"role": "user", "content": ["What is this?", Image.from_file("cat.png")]}])
    """

    data: bytes
    """The content of the file; only the server decodes it."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the image in the file at `path`.

        Raises:
            OSError: It cannot be read.
        """
        return cls(Path(path).read_bytes())

    @classmethod
    def from_data_url(cls, url: str) -> Self:
        """Return the image in `url`, `data:image/png;base64,…`, or with jpeg, webp or gif.

        Raises:
            ValueError: It is not such a data URL. Nothing is fetched from any other URL.
        """
        head, comma, text = url.partition(",")
        kind = head[:_SHOWN].lower().removesuffix(_BASE64).removeprefix("data:image/")
        if (
            not comma
            or head.lower() != f"data:image/{kind}{_BASE64}"
            or kind not in (*_KINDS, _JPG)
        ):
            shown = url if len(url) <= _SHOWN else f"{url[:_SHOWN]}…"
            raise ValueError(
                f"is {shown!r}; expected data:image/KIND;base64,…, where KIND is one of "
                f"{', '.join(_KINDS)}: images are not downloaded"
            )
        try:
            return cls(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"is not valid base64 after {head!r}: {error}") from None

    def __repr__(self) -> str:
        """Show the size, not the content."""
        return f"Image({len(self.data)} bytes)"
