"""Files of images: what is taken of them, and what is refused before it does harm."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from loramux_server.images.decoding import RefusedImageError, decode
from loramux_server.settings.limits import MOST_IMAGE_PIXELS
from tests.support.pictures import picture, saved

MAX_PIXELS = 1_000_000


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a file that says that it has so many pixels of one bit."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def gif_of_frames(count: int) -> bytes:
    first, *others = [picture("P", (8, 8), seed) for seed in range(count)]
    return saved(first, "GIF", save_all=True, append_images=others)


def turned(orientation: int) -> bytes:
    image = picture(size=(30, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    return saved(image, "JPEG", exif=exif)


@pytest.mark.parametrize(("kind", "modes"), [
    ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA")),
    ("JPEG", ("L", "RGB", "CMYK")),
    ("WEBP", ("RGB", "RGBA")),
    ("GIF", ("L", "P")),
])  # fmt: skip
def test_an_image_is_what_pillow_opens(kind: str, modes: tuple[str, ...]) -> None:
    for mode in modes:
        data = saved(picture(mode), kind)
        assert same(decode(data, MAX_PIXELS), Image.open(BytesIO(data)))


def test_gray_of_sixteen_bits_becomes_gray_of_eight() -> None:
    image = picture("I;16")
    wanted = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    assert same(decode(saved(image), MAX_PIXELS), wanted)


@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_upright(orientation: int) -> None:
    data = turned(orientation)
    assert same(decode(data, MAX_PIXELS), ImageOps.exif_transpose(Image.open(BytesIO(data))))


@pytest.mark.parametrize(
    "exif", [b"", b"\xff" * 99, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM"]
)
def test_exif_that_cannot_be_read_says_nothing(exif: bytes) -> None:
    data = saved(picture(), "JPEG", exif=exif)
    assert same(decode(data, MAX_PIXELS), decode(saved(picture(), "JPEG"), MAX_PIXELS))


def test_of_an_animation_the_first_frame_counts() -> None:
    data = gif_of_frames(300)
    assert same(decode(data, MAX_PIXELS), Image.open(BytesIO(data)))
    frames = [picture("RGB", (8, 8), seed) for seed in range(3)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert same(decode(data, MAX_PIXELS), Image.open(BytesIO(data)))


def test_what_comes_after_an_image_is_no_part_of_it() -> None:
    data = saved(picture())
    assert same(decode(data + b"PK\x03\x04 <script>", MAX_PIXELS), decode(data, MAX_PIXELS))


GOOD = saved(picture())
SMALL_GIF = saved(picture("P"), "GIF")
NONE = "expected a PNG, JPEG, WebP or GIF file"
BAD = {
    "nothing": (b"", f"the file is empty; {NONE}"),
    "zeroes": (bytes(999), r"the file begins with b'\\x00"),
    "text": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', f"the file begins with b'<svg.*{NONE}"),
    "a document": (b"%PDF-1.7\n" + GOOD, "the file begins with b'%PDF"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n" + GOOD, "the file begins with b'%!PS"),
    "another format": (saved(picture(), "TIFF"), "the file begins with b'II"),
    "an icon": (saved(picture(), "ICO"), NONE),
    "a bitmap": (saved(picture(), "BMP"), "the file begins with b'BM"),
    "a signature": (GOOD[:8], f"{NONE}|cannot be read"),
    "a file that is cut off": (GOOD[:-100], "the PNG file cannot be decoded and may be truncated"),
    "a photo that is cut off": (saved(picture(), "JPEG")[:-500], "JPEG file cannot be decoded"),
    "a file with a flaw": (GOOD[:60] + b"????" + GOOD[64:], "the PNG file cannot be decoded"),
    "a bomb": (png_of(50_000, 50_000), "too many pixels; expected at most 1000000"),
    "another": (
        png_of(2000, 2000, bytes(500_000)),
        "2000 x 2000 pixels; expected at most 1000000 in",
    ),
    "a GIF of that kind": (SMALL_GIF[:6] + b"\xff" * 4 + SMALL_GIF[10:], "too many pixels"),
    "no pixels": (png_of(0, 9), f"cannot be read|at least one|{NONE}"),
    "a line": (
        png_of(9, 9000, bytes(18_000)),
        "9 x 9000 pixels; expected a longer side of at most 200",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_is_refused_that_is_no_image_that_is_taken(what: str) -> None:
    data, message = BAD[what]
    with pytest.raises(RefusedImageError, match=message):
        decode(data, MAX_PIXELS)


def test_what_pillow_opens_limits_the_limit() -> None:
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == MOST_IMAGE_PIXELS


def test_any_beginning_of_a_file_is_an_image_or_refused() -> None:
    for data in (GOOD, turned(6), saved(picture("RGBA"), "WEBP"), gif_of_frames(2)):
        refused = 0
        for end in range(0, len(data), 41):
            try:
                decode(data[:end], MAX_PIXELS)
            except RefusedImageError:
                refused += 1
        assert refused
