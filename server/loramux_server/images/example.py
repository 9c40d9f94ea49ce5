"""A test image for base models."""

import io

import numpy as np
from PIL import Image

_SIZE = (48, 80, 3)
"""Height, width, channels."""
NUM_PIXELS = _SIZE[0] * _SIZE[1]


def picture() -> bytes:
    """Return a fixed PNG file of random pixels, in which no two regions look alike."""
    pixels = np.random.default_rng(0).integers(0, 256, _SIZE, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
