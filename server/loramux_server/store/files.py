"""What the store does to its folder: a few plain calls of the operating system.

All that the store writes or reads, but for the catalog and its reserve, goes through one `Files`,
so tests can put another in its place that records, fails or ends the process at any of them.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk on which there is no room, or none for the store."""


class Files:
    """The operations; each raises the OSError of its call."""

    def make_folder(self, path: Path) -> None:
        """Make a folder for the owner alone; it is no error if it is there."""
        path.mkdir(mode=0o700, exist_ok=True)

    def create(self, path: Path, *, must_not_exist: bool) -> BinaryIO:
        """Open a file of the owner alone to write and to read, from its beginning."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        if must_not_exist:
            flags |= os.O_EXCL
        return os.fdopen(os.open(path, flags, 0o600), "r+b")

    def open(self, path: Path) -> BinaryIO:
        """Open a file to read."""
        return path.open("rb")

    def sync(self, file: BinaryIO) -> None:
        """Return when all that was written to `file` survives a power cut."""
        file.flush()
        os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give the file `source` the name `target`, too, which must be free."""
        target.hardlink_to(source)

    def replace(self, source: Path, target: Path) -> None:
        """Give the file `source` the name `target`, whatever had it, and no other."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Take a name away; it is no error if it is not there."""
        path.unlink(missing_ok=True)

    def entries(self, folder: Path) -> list[Path]:
        """Return what is in a folder, in order."""
        return sorted(folder.iterdir())

    def modified(self, path: Path) -> float:
        """Return when a file was last written to, in seconds since the epoch."""
        return path.stat().st_mtime

    def lock(self, path: Path) -> BinaryIO:
        """Return the file `path`; as long as it is open, nobody else can lock it.

        Raises:
            BlockingIOError: Somebody else has it.
        """
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        return file
