"""The system calls that the store makes in its folder.

All that the store reads or writes, except the catalog and its reserve, goes through one `Files`. So
tests can substitute one that records calls, fails, or ends the process at any of them.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a full disk or an exhausted quota."""


class Files:
    """The operations; each raises the OSError of its call."""

    def make_folder(self, path: Path) -> None:
        """Make a folder with mode 700, if it does not exist."""
        path.mkdir(mode=0o700, exist_ok=True)

    def create(self, path: Path, *, must_not_exist: bool) -> BinaryIO:
        """Open a file with mode 600 for reading and writing, at its start."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        if must_not_exist:
            flags |= os.O_EXCL
        return os.fdopen(os.open(path, flags, 0o600), "r+b")

    def open(self, path: Path) -> BinaryIO:
        """Open a file for reading."""
        return path.open("rb")

    def sync(self, file: BinaryIO) -> None:
        """Flush and fsync `file`, so that its content survives a power cut."""
        file.flush()
        os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Fsync a folder, so that its directory entries survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Hard-link the file `source` to `target`, which must not exist."""
        target.hardlink_to(source)

    def replace(self, source: Path, target: Path) -> None:
        """Rename the file `source` to `target`, replacing what is there."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Unlink a file, if it exists."""
        path.unlink(missing_ok=True)

    def entries(self, folder: Path) -> list[Path]:
        """Return the entries of a folder, sorted."""
        return sorted(folder.iterdir())

    def modified(self, path: Path) -> float:
        """Return the modification time of a file, in seconds since the epoch."""
        return path.stat().st_mtime

    def lock(self, path: Path) -> BinaryIO:
        """Open the file `path` and lock it for as long as it is open.

        Raises:
            BlockingIOError: Another process holds the lock.
        """
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        return file
