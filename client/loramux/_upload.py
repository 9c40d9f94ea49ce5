"""Preparing an upload: pack a folder, compute the digest, split the package into chunks.

An interrupted upload is resumed at the offset that the server reports.
"""

import datetime
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from loramux.errors import (
    InternalError,
    InvalidArgumentError,
    LoramuxError,
    NotFoundError,
    UnavailableError,
)
from loramux.v1 import adapters_pb2, uploads_pb2
from loramux_adapters import PackageError, open_source, read_package

CHUNK_BYTES = 512 << 10
MAX_FAILURES = 10
"""Consecutive attempts without progress; enough for a restart of the server."""
MIN_DELAY = 0.1
MAX_DELAY = 5.0

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in total); after an interruption the former may decrease."""


@dataclass(slots=True)
class Upload:
    """An open package that is being uploaded, and the progress."""

    file: BinaryIO
    header: adapters_pb2.UploadHeader
    progress: Progress | None
    deadline: float
    """On the monotonic clock."""
    committed: int | None = None
    """Bytes that the server has, as last reported."""
    failures: int = 0
    """Consecutive attempts without progress."""
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    def start_request(self) -> uploads_pb2.StartUploadRequest:
        """Return the message that starts an attempt."""
        return uploads_pb2.StartUploadRequest(header=self.header)

    def started(self, response: uploads_pb2.StartUploadResponse) -> bool:
        """Record the offset that the server reports; return whether bytes are missing."""
        if self.committed is None or response.committed_bytes > self.committed:
            self.failures = 0
        self.committed = response.committed_bytes
        if self.progress and self.committed:
            self.progress(self.committed, self.header.size_bytes)
        return self.committed < self.header.size_bytes

    def chunks(self, upload_id: str) -> Iterator[uploads_pb2.SendChunksRequest]:
        """Yield the missing chunks; one is in memory at a time."""
        offset = self.committed or 0
        while chunk := self._read(offset):
            yield uploads_pb2.SendChunksRequest(upload_id=upload_id, offset=offset, chunk=chunk)
            offset += len(chunk)
            if self.progress:
                self.progress(offset, self.header.size_bytes)

    def delay(self, error: LoramuxError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            LoramuxError: `error`, if another attempt would not help or there were too many.
        """
        is_lost = isinstance(error, NotFoundError) and error.reason == "UPLOAD_NOT_FOUND"
        # A stream that ends while it is written may fail with gRPC's own error; the next attempt
        # gets the reason.
        is_hidden = isinstance(error, InternalError) and not error.reason
        is_passing = is_lost or is_hidden or isinstance(error, UnavailableError)
        if not is_passing or self.committed is None:
            raise error
        self.failures += 1
        seconds = error.retry_delay or min(MIN_DELAY * 2.0**self.failures, MAX_DELAY)
        if self.failures > MAX_FAILURES or seconds >= self.remaining:
            raise error
        return seconds

    def _read(self, offset: int) -> bytes:
        # A thread of gRPC may still be reading for the previous attempt.
        with self._reading:
            self.file.seek(offset)
            return self.file.read(CHUNK_BYTES)


@contextmanager
def open_upload(
    name: str,
    path: str | Path,
    *,
    must_not_exist: bool,
    ttl: datetime.timedelta | None = None,
    progress: Progress | None = None,
    timeout: float = 600.0,
) -> Iterator[Upload]:
    """Open the PEFT folder or package at `path` for an upload under `name`.

    Raises:
        InvalidArgumentError: The folder or file is not an adapter that can be served.
        OSError: The path cannot be read.
    """
    try:
        with open_source(Path(path)) as file:
            size = os.fstat(file.fileno()).st_size
            read_package(file, size)
            file.seek(0)
            sha256 = hashlib.sha256()
            while chunk := file.read(CHUNK_BYTES):
                sha256.update(chunk)
            header = adapters_pb2.UploadHeader(
                name=name,
                size_bytes=size,
                sha256=sha256.hexdigest(),
                must_not_exist=must_not_exist,
            )
            if ttl is not None:
                header.ttl.FromTimedelta(ttl)
            yield Upload(file, header, progress, time.monotonic() + timeout)
    except PackageError as error:
        text = str(error)  # some messages begin with the path
        text = text if text.startswith(f"{path} ") else f"{path}: {text}"
        raise InvalidArgumentError(text, reason=error.reason) from None
