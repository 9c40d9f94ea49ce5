"""From a path to the messages of an upload: pack if it is a folder, digest, cut into chunks."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loramux.errors import InvalidArgumentError
from loramux.v1 import adapters_pb2
from loramux_adapters import PackageError, pack, read_package

CHUNK_BYTES = 512 << 10

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An open package, ready to be sent."""

    file: BinaryIO
    header: adapters_pb2.UploadHeader

    def messages(self, progress: Progress | None) -> Iterator[adapters_pb2.UploadAdapterRequest]:
        """Yield the header and then the chunks; memory holds one chunk at a time."""
        yield adapters_pb2.UploadAdapterRequest(header=self.header)
        total = self.header.size_bytes
        self.file.seek(0)
        sent = 0
        while chunk := self.file.read(CHUNK_BYTES):
            yield adapters_pb2.UploadAdapterRequest(chunk=chunk)
            sent += len(chunk)
            if progress:
                progress(sent, total)


@contextmanager
def open_upload(name: str, path: str | Path, *, must_not_exist: bool) -> Iterator[Upload]:
    """Open the PEFT folder or package at `path` for an upload under `name`.

    Raises:
        InvalidArgumentError: The folder or file is not an adapter that can be served.
        OSError: The path cannot be read.
    """
    try:
        with _open_package(Path(path)) as file:
            size = os.fstat(file.fileno()).st_size
            read_package(file, size)
            file.seek(0)
            sha256 = hashlib.sha256()
            while piece := file.read(CHUNK_BYTES):
                sha256.update(piece)
            header = adapters_pb2.UploadHeader(
                name=name,
                size_bytes=size,
                sha256=sha256.hexdigest(),
                must_not_exist=must_not_exist,
            )
            yield Upload(file, header)
    except PackageError as error:
        raise InvalidArgumentError(f"{path}: {error}", reason=error.reason) from None


@contextmanager
def _open_package(path: Path) -> Iterator[BinaryIO]:
    if not path.is_dir():
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="loramux-") as packed:
        pack(path, packed)
        packed.flush()
        yield packed
