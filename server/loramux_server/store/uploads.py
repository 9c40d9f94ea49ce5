"""Resumable uploads: they survive failed attempts and restarts of the server.

An upload is identified by what it declares, so whoever declares the same continues it. Its progress
is the length of its file; nothing else is stored.
"""

import datetime
import hashlib
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field, replace

from loramux.errors import NotFoundError, OutOfRangeError, ResourceExhaustedError
from loramux_server.store.blobs import Staged
from loramux_server.store.files import FULL
from loramux_server.store.quota import Reservation
from loramux_server.store.record import UPLOAD, AdapterRecord
from loramux_server.store.reference import parse_name
from loramux_server.store.registry import Registry

MAX_UPLOADS = 256
"""Most uploads with open files."""
_REMEMBERED = 1024
"""Finished uploads whose result is remembered for repeated calls."""

Registered = tuple[AdapterRecord, bool]
"""A version, and whether it is new."""


@dataclass(slots=True)
class Upload:
    """A package that is being uploaded."""

    id: str
    tenant: str
    size: int
    staged: Staged
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the file is written or read as a whole."""
    touched: float = field(default_factory=time.monotonic)
    """When it was last used, by the monotonic clock."""
    is_finishing: bool = False
    """Whether its file is being checked and registered."""

    @property
    def is_complete(self) -> bool:
        """Whether all bytes have arrived."""
        return self.staged.size == self.size

    def is_hopeless(self, digest: str) -> bool:
        """Return whether its file cannot become the content `digest`.

        A power cut can damage a file that was right.
        """
        return self.staged.size > self.size or (self.is_complete and self.staged.digest != digest)


def id_of(name: str, digest: str, size: int) -> str:
    """Return the id of an upload that declares this name, digest and size."""
    reference = parse_name(name, "header.name")
    declared = f"{reference.tenant}/{reference.name} {digest} {size}"
    return hashlib.sha256(declared.encode()).hexdigest()[:32]


class Uploads:
    """Owns the files of resumable uploads. Thread-safe; its methods may block."""

    def __init__(self, registry: Registry, expiry: float) -> None:
        """Prepare; files that an earlier server process left can be continued.

        Args:
            registry: Where finished uploads are registered.
            expiry: Seconds without activity after which an upload is deleted.
        """
        self._registry = registry
        self._expiry = expiry
        self._open: dict[str, Upload] = {}
        self._reserved: dict[str, Reservation] = {}
        """Quota of uploads that this process started or continued, while their files exist."""
        self._finished: OrderedDict[str, Registered] = OrderedDict()
        self._lock = threading.Lock()
        """Held to change the set of uploads."""

    def adopt(
        self,
        name: str,
        digest: str,
        *,
        must_not_exist: bool,
        expires_at: datetime.datetime | None = None,
    ) -> Registered | None:
        """Register content that the tenant already has under `name`; None if it must be uploaded.

        The stored file is read in full; if it is damaged, it must be uploaded again.
        """
        reference = parse_name(name, "header.name")
        self._registry.leases.keep(digest)
        try:
            known = self._registry.with_digest(digest)
            of_tenant = [record for record in known if record.tenant == reference.tenant]
            seal = self._registry.blobs.seal_of(digest) if of_tenant else None
            if seal is None:
                return None
            record = replace(
                of_tenant[0],
                name=reference.name,
                seal=seal,
                version=0,
                source=UPLOAD,
                stamp="",
                origin="",
                created_at=datetime.datetime.now(datetime.UTC),
                is_pinned=False,
                expires_at=expires_at,
            )
            with self._registry.quotas.reserved(reference, digest, record.size_bytes):
                return self._registry.register(record, must_not_exist=must_not_exist)
        finally:
            self._registry.leases.let_go(digest)

    def start(self, name: str, digest: str, size: int) -> Upload:
        """Return the upload of this content under this name, new or continued.

        Raises:
            ResourceExhaustedError: Too many are in progress, or the tenant stores too much.
        """
        reference = parse_name(name, "header.name")
        upload_id = id_of(name, digest, size)
        with self._lock:
            upload = self._open.get(upload_id)
            if upload is None:
                if upload_id not in self._reserved:
                    room = self._registry.quotas.reserve(reference, digest, size)
                    self._reserved[upload_id] = room
                try:
                    upload = self._open[upload_id] = self._begin(upload_id, reference.tenant, size)
                finally:
                    self._give_back()
        if not upload.is_finishing and upload.is_hopeless(digest):
            self.end(upload)
            return self.start(name, digest, size)
        upload.touched = time.monotonic()
        return upload

    def get(self, upload_id: str) -> Upload:
        """Return the upload `upload_id`.

        Raises:
            NotFoundError: There is none.
        """
        try:
            return self._open[upload_id]
        except KeyError:
            raise no_upload(upload_id) from None

    def has(self, upload_id: str) -> bool:
        """Return whether an upload is open."""
        return upload_id in self._open

    def write(self, upload: Upload, offset: int, chunk: bytes) -> int:
        """Append the new part of `chunk` and return the number of bytes received so far.

        Raises:
            OutOfRangeError: Bytes before `offset` are missing.
            NotFoundError: The upload has ended, or was put aside.
            OSError: It cannot be written. If the store is full, the whole upload is deleted: names,
                keys and aliases need space, too.
        """
        with upload.lock:
            if self.get(upload.id) is not upload:  # put aside, and continued by another call
                raise no_upload(upload.id)
            here = upload.staged.size
            if offset > here:
                raise OutOfRangeError(
                    f"the chunk begins at byte {offset}, but only {here} bytes were received",
                    reason="UPLOAD_PROTOCOL",
                    field="offset",
                )
            upload.touched = time.monotonic()
            if offset + len(chunk) > here:
                try:
                    upload.staged.write(chunk[here - offset :])
                    upload.staged.file.flush()
                except OSError as error:
                    if error.errno in FULL:
                        self.end(upload)
                    else:
                        with self._lock:
                            self._put_aside(upload)
                    raise
            return upload.staged.size

    def finished(self, upload_id: str) -> Registered | None:
        """Return the result of a recently finished upload; None if it is not known."""
        return self._finished.get(upload_id)

    def end(self, upload: Upload, result: Registered | None = None) -> None:
        """Delete the file of an upload; `result` is what was registered, if anything."""
        with self._lock:
            if self._open.get(upload.id) is not upload:
                return
            del self._open[upload.id]
            if result:
                self._finished[upload.id] = result
                while len(self._finished) > _REMEMBERED:
                    self._finished.popitem(last=False)
        self._registry.discard(upload.staged)
        with self._lock:
            self._give_back()

    def expire(self) -> None:
        """Delete uploads that nobody has continued for too long."""
        now = time.monotonic()
        for upload in list(self._open.values()):
            is_old = now - upload.touched > self._expiry and not upload.is_finishing
            if is_old and upload.lock.acquire(blocking=False):
                try:
                    self.end(upload)
                finally:
                    upload.lock.release()
        in_use = {upload.staged.path for upload in list(self._open.values())}
        self._registry.blobs.drop_uploads(time.time() - self._expiry, in_use)
        if reserve := self._registry.blobs.reserve:
            reserve.keep()
        with self._lock:
            self._give_back()

    def close(self) -> None:
        """Close the files and keep them, for the next server process to continue."""
        with self._lock:
            for upload in list(self._open.values()):
                self._put_aside(upload)

    def _begin(self, upload_id: str, tenant: str, size: int) -> Upload:
        """Open the file of an upload. The caller holds `_lock`."""
        if len(self._open) >= MAX_UPLOADS:
            self._make_room()
        # A new declaration starts over, even if the same upload finished before.
        self._finished.pop(upload_id, None)
        return Upload(upload_id, tenant, size, self._registry.blobs.resume(upload_id))

    def _give_back(self) -> None:
        """Return the quota of uploads whose files are gone. The caller holds `_lock`."""
        for upload_id in list(self._reserved):
            if not self._registry.blobs.has_upload(upload_id):
                self._registry.quotas.give_back(self._reserved.pop(upload_id))

    def _make_room(self) -> None:
        """Put aside the least recently used upload. The caller holds `_lock`.

        Raises:
            ResourceExhaustedError: All of them are being written or finished now.
        """
        for upload in sorted(self._open.values(), key=lambda upload: upload.touched):
            if not upload.is_finishing and upload.lock.acquire(blocking=False):
                try:
                    self._put_aside(upload)
                finally:
                    upload.lock.release()
                return
        raise ResourceExhaustedError(
            f"{MAX_UPLOADS} uploads are already in progress",
            reason="TOO_MANY_UPLOADS",
            retry_delay=5.0,
        )

    def _put_aside(self, upload: Upload) -> None:
        """Close an upload but keep its file, which is hashed again when it continues.

        The caller holds `_lock`.
        """
        self._open.pop(upload.id, None)
        with suppress(OSError):
            upload.staged.file.close()
        if upload.staged.is_leased:  # it was published, and not registered
            self._registry.leases.let_go(upload.staged.digest)


def no_upload(upload_id: str) -> NotFoundError:
    """Return the error for an unknown upload id, or one that the caller must not see."""
    return NotFoundError(
        f"no upload has the id {upload_id[:64]!r}; begin with StartUpload again",
        reason="UPLOAD_NOT_FOUND",
        field="upload_id",
    )
