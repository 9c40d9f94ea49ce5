"""Image file bytes -> pixels, upright.

The format is determined by the first bytes alone. The size is checked before decoding: a few bytes
can stand for more pixels than there is memory.
"""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
from PIL import (
    GifImagePlugin,
    Image,
    ImagePalette,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.Image import Transpose

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_ASPECT = 200
"""Longest allowed aspect ratio. Beyond it some processors refuse an image, and others scale it
until the shorter side has the size they want."""
USED = (
    GifImagePlugin, ImagePalette, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin,
    WebPImagePlugin,
)  # fmt: skip
"""The modules that Pillow imports on first use; it reads EXIF with TIFF's."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # fmt: skip
_BROKEN = (
    OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, AttributeError, EOFError,
    OverflowError, ZeroDivisionError, struct.error, zlib.error, NotImplementedError,
)  # fmt: skip
"""What Pillow raises for malformed files."""


class RefusedImageError(Exception):
    """The bytes are not an acceptable image; the message is for callers."""


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image in a file, upright; of several frames the first.

    Raises:
        RefusedImageError: The format is not supported, or the file is damaged or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decompression bombs are refused below
        image = _opened(data, max_pixels)
        width, height = image.size
        _check_size(width, height, max_pixels)
        try:
            image.load()
        except _BROKEN as error:
            raise RefusedImageError(
                f"the {image.format} file cannot be decoded and may be truncated: {error}"
            ) from None
        return _eight_bits(_upright(image))


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RefusedImageError(f"{_begin(data)}; expected a PNG, JPEG, WebP or GIF file") from None
    except Image.DecompressionBombError:
        raise RefusedImageError(
            f"the image has too many pixels; expected at most {max_pixels}"
        ) from None
    except _BROKEN as error:
        raise RefusedImageError(f"the file cannot be read: {error}") from None


def _begin(data: bytes) -> str:
    return f"the file begins with {data[:12]!r}" if data else "the file is empty"


def _check_size(width: int, height: int, max_pixels: int) -> None:
    shape = f"the image has {width} x {height} pixels"
    if not width or not height:
        raise RefusedImageError(f"{shape}; expected at least one")
    if width * height > max_pixels:
        raise RefusedImageError(f"{shape}; expected at most {max_pixels} in all")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RefusedImageError(
            f"{shape}; expected a longer side of at most {MAX_ASPECT} times the shorter"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _BROKEN:
        # As in a browser: unreadable metadata is ignored.
        return image
    return image if turned is None else image.transpose(turned)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray; Pillow would clip everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
