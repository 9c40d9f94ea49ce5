"""Package files on disk, each under its digest.

A blob is staged, synced and linked to its final name, and then the folder is synced. So a name
below `blobs` always has all of its bytes, whenever the power failed.
"""

import logging
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from loramux_server.hashes import Digest, Seal
from loramux_server.store.files import Files
from loramux_server.store.reserve import Reserve

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_RESUMABLE = ".upload"
"""Suffix of staged files that a restart keeps."""


class StoreLockedError(Exception):
    """Another server uses the store."""


class Staged:
    """A file that is being written and is not yet part of the store."""

    def __init__(self, path: Path, file: BinaryIO, reserve: Reserve | None) -> None:
        self.path = path
        self.file = file
        """Readable and writable; checks read through it, so they see what is published."""
        self.size = 0
        self.is_inherited = False
        """Whether an earlier server wrote part of it, which a power cut may have damaged."""
        self.is_leased = False
        """Whether it holds a lease on the blob of its content until it is discarded."""
        self._reserve = reserve
        self._digest, self._seal = Digest(), Seal()

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far."""
        return self._digest.text()

    @property
    def seal(self) -> str:
        """Seal (BLAKE3) of what was written so far."""
        return self._seal.text()

    def write(self, chunk: bytes) -> None:
        """Append `chunk`.

        Raises:
            OSError: It cannot be written, or only into the space of the reserve.
        """
        if self._reserve:
            self._reserve.demand()
        self.file.write(chunk)
        self._take_in(chunk)

    def catch_up(self) -> None:
        """Hash and count what an earlier server process wrote."""
        while chunk := self.file.read(_CHUNK_BYTES):
            self._take_in(chunk)
        self.is_inherited = self.size > 0

    def _take_in(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._seal.update(chunk)
        self.size += len(chunk)


class Blobs:
    """The package files `blobs/ab/ab…`, with `staging` beside them."""

    def __init__(self, folder: Path, files: Files) -> None:
        """Open the store in `folder` and lock it.

        Raises:
            StoreLockedError: Another server uses it.
        """
        self._files = files
        self.reserve: Reserve | None = None
        """Space on this disk that packages may not take."""
        self._blobs = folder / "blobs"
        self._staging = folder / "staging"
        for path in (folder, self._blobs, self._staging):
            files.make_folder(path)
            files.sync_folder(path.parent)
        self._durable: set[Path] = set()
        """Folders of blobs whose own directory entries are known to be synced."""
        try:
            self._lock = files.lock(folder / "lock")
        except BlockingIOError:
            raise StoreLockedError(f"{folder} is in use by another server") from None

    def path(self, digest: str) -> Path:
        """Return where the blob `digest` is, or would be."""
        hexadecimal = digest.removeprefix("sha256:")
        return self._blobs / hexadecimal[:2] / hexadecimal

    def stage(self) -> Staged:
        """Open a new staging file."""
        path = self._staging / f"{secrets.token_hex(16)}.part"
        return Staged(path, self._files.create(path, must_not_exist=True), self.reserve)

    def has_upload(self, upload_id: str) -> bool:
        """Return whether there is a file of this resumable upload."""
        return self._upload(upload_id).exists()

    def resume(self, upload_id: str) -> Staged:
        """Open the file of a resumable upload, new or begun earlier; existing content is hashed."""
        path = self._upload(upload_id)
        staged = Staged(path, self._files.create(path, must_not_exist=False), self.reserve)
        try:
            staged.catch_up()
        except BaseException:
            staged.file.close()
            raise
        return staged

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a temporary folder for what is not a package yet; it is deleted after the block.

        Raises:
            OSError: The disk is too full.
        """
        if self.reserve:
            self.reserve.demand()
        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            yield Path(folder)

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading.

        Raises:
            FileNotFoundError: It is missing.
        """
        return self._files.open(self.path(digest))

    def drop_uploads(self, before: float, in_use: Collection[Path]) -> None:
        """Delete files of uploads that were last written before `before`, except those `in_use`.

        `before` is in seconds since the epoch.
        """
        for path in self._files.entries(self._staging):
            is_left = path.suffix == _RESUMABLE and path not in in_use
            # An upload may end, and its file go, meanwhile.
            with suppress(FileNotFoundError):
                if is_left and self._files.modified(path) < before:
                    self._files.remove(path)

    def seal_of(self, digest: str) -> str | None:
        """Return the seal of a blob, read in full; None if it cannot be read or is damaged."""
        found, seal = Digest(), Seal()
        try:
            with self.open(digest) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    found.update(chunk)
                    seal.update(chunk)
        except OSError:
            return None
        return seal.text() if found.text() == digest else None

    def discard(self, staged: Staged) -> None:
        """Close and delete a staged file; if it was published, the blob stays."""
        try:
            self._files.remove(staged.path)
        except OSError as error:
            _log.warning(
                "cannot delete %s, will retry at a later start: %s", staged.path.name, error
            )
        # Closing flushes; an error does not matter for a deleted file.
        with suppress(OSError):
            staged.file.close()

    def publish(self, staged: Staged) -> Path:
        """Make a staged file durable under its digest and return the path there."""
        self._files.sync(staged.file)
        target = self.path(staged.digest)
        # An existing folder may be from a server that ended before it was synced.
        if target.parent not in self._durable:
            self._files.make_folder(target.parent)
            self._files.sync_folder(self._blobs)
            self._durable.add(target.parent)
        try:
            self._files.link(staged.path, target)
        except FileExistsError:
            # The same content or a damaged copy of it; the new file is right in both cases.
            self._files.replace(staged.path, target)
        self._files.sync_folder(target.parent)
        return target

    def remove(self, digest: str) -> None:
        """Delete a blob; if that fails, the next start will."""
        try:
            self._files.remove(self.path(digest))
        except OSError as error:
            _log.warning("cannot delete %s, will retry at the next start: %s", digest, error)
        if self.reserve:
            self.reserve.keep()

    def recover(self, referenced: Collection[str]) -> None:
        """Delete what a crash left: staged files, except resumable uploads, and unused blobs."""
        for path in self._files.entries(self._staging):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != _RESUMABLE:
                self._files.remove(path)
        for folder in filter(Path.is_dir, self._files.entries(self._blobs)):
            for path in self._files.entries(folder):
                if f"sha256:{path.name}" not in referenced:
                    self._files.remove(path)

    def _upload(self, upload_id: str) -> Path:
        return self._staging / f"{upload_id}{_RESUMABLE}"

    def close(self) -> None:
        """Unlock the store."""
        self._lock.close()
