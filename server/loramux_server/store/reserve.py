"""Room that a store keeps for its catalog, where everything else has filled the disk.

Without it nothing could be deleted any more: SQLite writes to its log what is to go, too.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from loramux_server.store.files import FULL

RESERVE_BYTES = 8 << 20
"""Twice of what the log of the catalog has before SQLite begins with it anew."""


class Reserve:
    """A file of zeros in the store's folder, emptied while a small change needs its room.

    Several processes may use it, each thread of theirs; all of it may block.
    """

    def __init__(self, folder: Path) -> None:
        """Name the file; nothing is done to it yet."""
        self._folder = folder
        self._path = folder / "reserve"
        self._is_possible = True
        """Whether this disk can keep room for later at all."""
        self._is_owed = False
        """Whether its room was given up here."""

    @property
    def is_kept(self) -> bool:
        """Whether the room is there."""
        try:
            return self._path.stat().st_size >= RESERVE_BYTES
        except OSError:
            return False

    def start(self) -> bool:
        """Do as `keep`, also where the file is a copy that has a size and takes no room."""
        with suppress(OSError):
            if self._path.stat().st_blocks * 512 < RESERVE_BYTES:
                os.truncate(self._path, 0)
        return self.keep()

    def keep(self) -> bool:
        """Keep room if there is any; return False where the disk is too full for it."""
        if self.is_kept or not self._is_possible:
            return True
        try:
            disk = os.statvfs(self._folder)
            if disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
                return False
            with self._held(os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB) as descriptor:
                self._fill(descriptor)
        except BlockingIOError:
            return False  # somebody needs the room at this moment
        except OSError as error:
            if error.errno in FULL:
                return False
            self._is_possible = False
        return True

    def demand(self) -> None:
        """Keep the room, for who is about to fill the disk.

        Raises:
            OSError: There is too little.
        """
        if not self.keep():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def given_up(self) -> Iterator[bool]:
        """Let the block have the room; whether there was any.

        Nobody keeps it again meanwhile.
        """
        with ExitStack() as stack:
            has_room = False
            with suppress(OSError):
                descriptor = stack.enter_context(self._held(0, fcntl.LOCK_EX))
                has_room = os.fstat(descriptor).st_size > 0
                os.ftruncate(descriptor, 0)
                os.fsync(descriptor)
            self._is_owed |= has_room
            yield has_room

    def close(self) -> None:
        """Keep again what was given up here."""
        if self._is_owed:
            self.keep()

    @contextmanager
    def _held(self, flags: int, lock: int) -> Iterator[int]:
        flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, lock)
            yield descriptor
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int) -> None:
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            raise
