"""Files of images."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    """Return the same noise for the same seed."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA")
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (size[1], size[0]), np.uint16))
    return colours if mode == "RGBA" else colours.convert("RGB").convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a file of `image`."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
