"""What commands write: whole or absent, whatever happens meanwhile."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `target` at the end.

    Raises:
        FileExistsError: `target` is something else than a file.
    """
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} exists and is not a regular file, so it is not replaced")
    # Written aside and renamed.
    partial = _beside(target)
    try:
        with partial.open("x+b") as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield the path of a folder to make, which becomes `target` at the end.

    Raises:
        FileExistsError: `target` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already; name a new folder")
    partial = _beside(target)
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")
