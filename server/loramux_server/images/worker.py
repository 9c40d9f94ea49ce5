"""The process that prepares images: `python -m loramux_server.images.worker FD`.

What decodes images is written in C, and images come from strangers. So this process has nothing:
once it is ready, an audit hook lets it open no file, socket or process and import nothing; its
memory and the processor time of one image are limited by the system, and the frontend ends it where
it does not answer.
"""

import itertools
import os
import signal
import socket
import sys
import warnings
from io import BytesIO
from pathlib import Path

import psutil
import torch
from PIL import Image

from loramux_server.confinement import close_doors, limited
from loramux_server.engine.channel import read_message, write_message
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
"""Bytes of address space for an image, and for each pixel that it may have: what it is on the way
to being sent, in several formats and copies."""
_WARMING = (
    ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("JPEG", ("L", "RGB", "CMYK")),
    ("WEBP", ("RGB", "RGBA")),
    ("GIF", ("L", "P")),
)  # fmt: skip
_SIZES = ((64, 64), (300, 50), (50, 300))


def answer_to(processor: ImageProcessor, data: bytes) -> Answer:
    """Return what becomes of the image in a file, or why nothing does."""
    try:
        return Prepared(processor.prepare(data))
    except RefusedImageError as error:
        return Refused(str(error))
    except MemoryError:
        return Refused("the image takes more memory than one may")


def main(descriptor: int) -> None:
    """Prepare what comes on the socket `descriptor` until the other side closes."""
    # They reach the whole process group, and the frontend says when it is over.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    first = read_message(connection)
    if first is None:
        return
    setup = decode_setup(first)
    torch.set_num_threads(1)  # others have the cores as well
    warnings.simplefilter("ignore")
    try:
        processor = ImageProcessor.load(setup.path, setup.max_pixels)
    except NoProcessorError as error:
        write_message(connection, encode(Unavailable(str(error))))
        return
    _warm(processor)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())  # no image writes to the server's log
    memory = int(psutil.Process().memory_info().vms)
    close_doors(memory + MEMORY + MEMORY_OF_PIXEL * setup.max_pixels, "an image")
    write_message(connection, encode(Loaded(processor.placeholder)))
    while (message := read_message(connection)) is not None:
        with limited(setup.cpu_seconds):
            answer = encode(answer_to(processor, message))
        write_message(connection, answer)


def _warm(processor: ImageProcessor) -> None:
    """Import now what is imported when it is first needed."""
    for (kind, modes), size in itertools.product(_WARMING, _SIZES):
        for mode in modes:
            file = BytesIO()
            image = Image.new(mode, size)
            image.getexif()[0x0112] = 6  # on its side
            image.save(file, kind, exif=image.getexif())
            answer_to(processor, file.getvalue())
            answer_to(processor, file.getvalue()[:-20])


if __name__ == "__main__":
    main(int(sys.argv[1]))
