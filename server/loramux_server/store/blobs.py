"""Packages on disk, each under its digest.

A blob is staged, synced, linked to its final name and the folder synced, in this order; so a name
below `blobs` always has all of its bytes, whatever moment the power failed.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PIECE = 1 << 20
_RESUMABLE = ".upload"
"""Ends the names of staged files that a restart keeps."""


class StoreLockedError(Exception):
    """Another server uses the store."""


class Staged:
    """A file that is being written and not yet part of the store."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        """Readable and writable; what is checked through it is what is published."""
        self.size = 0
        self.is_leased = False
        """Whether it keeps the blob of its content, until it is discarded."""
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Identity of what was written so far."""
        return f"sha256:{self._sha256.hexdigest()}"

    def write(self, piece: bytes) -> None:
        """Append `piece`."""
        self.file.write(piece)
        self._sha256.update(piece)
        self.size += len(piece)

    def catch_up(self) -> None:
        """Take in what an earlier server wrote."""
        while piece := self.file.read(_PIECE):
            self._sha256.update(piece)
            self.size += len(piece)


class Blobs:
    """A folder of packages: `blobs/ab/ab…`, and `staging` beside it."""

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder` and keep others out of it.

        Raises:
            StoreLockedError: Another server uses it.
        """
        self._blobs = folder / "blobs"
        self._staging = folder / "staging"
        for path in (self._blobs, self._staging):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StoreLockedError(f"{folder} is in use by another server") from None

    def path(self, digest: str) -> Path:
        """Return where the blob `digest` is, or would be."""
        hexadecimal = digest.removeprefix("sha256:")
        return self._blobs / hexadecimal[:2] / hexadecimal

    def stage(self) -> Staged:
        """Open a new file to write to."""
        path = self._staging / f"{secrets.token_hex(16)}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return Staged(path, os.fdopen(os.open(path, flags, 0o600), "w+b"))

    def has_upload(self, upload_id: str) -> bool:
        """Return whether there is a file of an upload that may go on."""
        return self._upload(upload_id).exists()

    def resume(self, upload_id: str) -> Staged:
        """Open the file of an upload that may have begun earlier; what came of it is read."""
        path = self._upload(upload_id)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        staged = Staged(path, os.fdopen(os.open(path, flags, 0o600), "r+b"))
        staged.catch_up()
        return staged

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder for what is not a package yet; it goes with what is in it."""
        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            yield Path(folder)

    def drop_uploads(self, before: float, in_use: Collection[Path]) -> None:
        """Delete files of uploads, except those `in_use`, that nobody wrote to since `before`."""
        for path in self._staging.glob(f"*{_RESUMABLE}"):
            if path not in in_use and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def _upload(self, upload_id: str) -> Path:
        return self._staging / f"{upload_id}{_RESUMABLE}"

    def is_whole(self, digest: str) -> bool:
        """Return whether a blob is there with the bytes that its name says; reads all of them."""
        try:
            with self.path(digest).open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
        except FileNotFoundError:
            return False

    def discard(self, staged: Staged) -> None:
        """Close and delete what was staged; if it was published, the blob stays."""
        staged.path.unlink(missing_ok=True)
        # What could not be written is of no use any more.
        with suppress(OSError):
            staged.file.close()

    def publish(self, staged: Staged) -> Path:
        """Make what was staged durable under its digest and return its path."""
        staged.file.flush()
        os.fsync(staged.file.fileno())
        target = self.path(staged.digest)
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self._blobs)
        try:
            target.hardlink_to(staged.path)
        except FileExistsError:
            # The same content, or a damaged copy of it: either way this one is right.
            staged.path.replace(target)
        _sync_folder(target.parent)
        return target

    def remove(self, digest: str) -> None:
        """Delete a blob; it is no error if there is none."""
        self.path(digest).unlink(missing_ok=True)

    def recover(self, referenced: Collection[str]) -> None:
        """Delete what a crash left and nothing goes on with: staged files and blobs."""
        for path in self._staging.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != _RESUMABLE:
                path.unlink()
        for path in self._blobs.glob("*/*"):
            if f"sha256:{path.name}" not in referenced:
                path.unlink()

    def close(self) -> None:
        """Let another server use the store."""
        self._lock.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
