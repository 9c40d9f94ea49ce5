"""Output files and folders that are complete or absent, even if a command fails."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `target` at the end.

    Raises:
        FileExistsError: `target` exists and is not a regular file.
    """
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} exists and is not a regular file, so it is not replaced")
    partial = _temporary(target)
    try:
        with partial.open("x+b") as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield the path for a new folder, which is renamed to `target` at the end.

    Raises:
        FileExistsError: `target` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} already exists; choose a new folder")
    partial = _temporary(target)
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")
