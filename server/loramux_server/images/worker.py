"""The process that preprocesses images: `python -m loramux_server.images.worker FD`.

Image decoders are written in C, and images are untrusted. So the process is sandboxed: once it is
ready, the kernel denies it files, sockets and child processes, and an audit hook denies imports.
Memory and the processor time per image are limited by the system. The frontend kills it if it does
not answer.
"""

import itertools
import warnings
from io import BytesIO

import torch
from PIL import Image

from loramux_server.confinement.serve import Work, address_space, serve, silence
from loramux_server.images.decoding import RefusedImageError
from loramux_server.images.loading import NoProcessorError
from loramux_server.images.messages import (
    Answer,
    Loaded,
    Prepared,
    Refused,
    Unavailable,
    decode_setup,
    encode,
)
from loramux_server.images.processor import ImageProcessor

MEMORY = 1 << 30
MEMORY_OF_PIXEL = 160
"""Bytes of address space per image, and per pixel that it may have: for copies in several formats
on the way to the answer."""
_WARMING = (
    ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("JPEG", ("L", "RGB", "CMYK")),
    ("WEBP", ("RGB", "RGBA")),
    ("GIF", ("L", "P")),
)  # fmt: skip
_SIZES = ((64, 64), (300, 50), (50, 300))


def answer_to(processor: ImageProcessor, data: bytes) -> Answer:
    """Return the preprocessed image, or why it is refused."""
    try:
        return Prepared(processor.prepare(data))
    except RefusedImageError as error:
        return Refused(str(error))
    except MemoryError:
        return Refused("the image exceeds the memory limit of an image")


def prepare(message: bytes) -> Work | bytes:
    """Return the work to do for `message`, a Setup, or an answer that says why there is none."""
    setup = decode_setup(message)
    torch.set_num_threads(1)  # leave the cores to others
    warnings.simplefilter("ignore")
    try:
        processor = ImageProcessor.load(setup.path, setup.max_pixels)
    except NoProcessorError as error:
        return encode(Unavailable(str(error)))
    _warm(processor)
    silence()
    return Work(
        encode(Loaded(processor.placeholder)),
        lambda data: encode(answer_to(processor, data)),
        who="an image",
        memory=address_space() + MEMORY + MEMORY_OF_PIXEL * setup.max_pixels,
        cpu_seconds=setup.cpu_seconds,
    )


def _warm(processor: ImageProcessor) -> None:
    """Trigger all lazy imports now, before imports are denied."""
    for (kind, modes), size in itertools.product(_WARMING, _SIZES):
        for mode in modes:
            file = BytesIO()
            image = Image.new(mode, size)
            image.getexif()[0x0112] = 6  # rotated by 90 degrees
            image.save(file, kind, exif=image.getexif())
            answer_to(processor, file.getvalue())
            answer_to(processor, file.getvalue()[:-20])


if __name__ == "__main__":
    serve(prepare)
