"""Disk space reserved for the catalog, for when everything else has filled the disk.

Without it nothing could be deleted any more: SQLite writes deletions to its log, too.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from loramux_adapters.files import PASSING
from loramux_server.store.files import FULL

RESERVE_BYTES = 8 << 20
"""Twice the size at which SQLite restarts its write-ahead log."""


class Reserve:
    """A file of zeros in the store's folder, truncated while a small change needs its space.

    Safe for several processes and threads; its methods may block.
    """

    def __init__(self, folder: Path) -> None:
        """Set the path; the file is not touched yet."""
        self._folder = folder
        self._path = folder / "reserve"
        self._is_possible = True
        """False once reserving failed for a lasting reason, other than a full disk."""
        self._is_owed = False
        """Whether this object has released the space."""

    @property
    def is_kept(self) -> bool:
        """Whether the space is reserved."""
        try:
            return self._path.stat().st_size >= RESERVE_BYTES
        except OSError:
            return False

    def start(self) -> bool:
        """Like `keep`, but also replace a sparse copy of the file, which takes no space."""
        with suppress(OSError):
            if self._path.stat().st_blocks * 512 < RESERVE_BYTES:
                os.truncate(self._path, 0)
        return self.keep()

    def keep(self) -> bool:
        """Reserve the space unless it is; return False if the disk is too full for it."""
        if self.is_kept or not self._is_possible:
            return True
        try:
            disk = os.statvfs(self._folder)
            if disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
                return False
            with self._held(os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB) as descriptor:
                self._fill(descriptor)
        except BlockingIOError:
            return False  # another thread or process is using the space now
        except OSError as error:
            if error.errno in FULL:
                return False
            self._is_possible = error.errno in PASSING
        return True

    def demand(self) -> None:
        """Demand that the space is reserved, before writing something large.

        Raises:
            OSError: The disk is too full.
        """
        if not self.keep():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def released(self) -> Iterator[bool]:
        """Release the space during the block; yield whether any was reserved.

        Nobody can reserve it again until the block ends.
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
        """Reserve again what this object released."""
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
