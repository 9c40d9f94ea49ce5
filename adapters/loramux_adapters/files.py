"""Bounded reading of files from untrusted folders."""

import errno
import shlex
import stat
from pathlib import Path
from typing import BinaryIO

from loramux_adapters.errors import PackageError
from loramux_adapters.strict_json import parse_object

PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
"""Transient errors, which say nothing about the file."""


def open_regular(path: Path) -> BinaryIO:
    """Open `path` if it is a regular file.

    Raises:
        OSError: It is not a regular file, or cannot be read.
    """
    # Checked before opening, because opening a FIFO blocks until someone writes to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def read_bounded(source: Path, name: str, max_bytes: int) -> bytes:
    """Return the contents of the file `name` in the folder `source`.

    Raises:
        PackageError: It cannot be read, or is larger than `max_bytes`.
    """
    try:
        with open_regular(source / name) as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise PackageError(
            f"{source} has no readable {name} ({error.strerror}): expected a folder "
            "that PEFT's save_pretrained wrote",
            "INVALID_ADAPTER_CONFIG",
        ) from None
    if len(raw) > max_bytes:
        raise PackageError(f"{name} is above {max_bytes} bytes", "INVALID_ADAPTER_CONFIG")
    return raw


def read_object(source: Path, name: str, max_bytes: int) -> dict[str, object]:
    """Return the JSON object in the file `name` of the folder `source`.

    Raises:
        PackageError: It cannot be read, is larger than `max_bytes`, or is not a JSON object.
    """
    try:
        return parse_object(read_bounded(source, name, max_bytes), name)
    except PackageError:
        raise
    except ValueError as error:
        raise PackageError(str(error), "INVALID_ADAPTER_CONFIG") from None


def pickle_hint(source: Path, name: str) -> str:
    """Return a hint for the pickle `name` in the folder `source`."""
    return (
        f"{name} is a pickle, which can run code: `loramux convert --from-bin "
        f"{shlex.quote(str(source))} -o NAME.safetensors` reads only tensors"
    )
