"""Writing a download to a file that is complete or absent."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from loramux import _adapter_wire as wire
from loramux._upload import Progress
from loramux.errors import DataLossError
from loramux.types import Adapter
from loramux.v1 import adapters_pb2


@dataclass(slots=True)
class Download:
    """A package that is being downloaded."""

    file: BinaryIO
    progress: Progress | None
    sha256: Any
    adapter: Adapter | None = None
    received: int = 0

    def take(self, response: adapters_pb2.DownloadAdapterResponse) -> None:
        """Write the next message to the file."""
        if response.HasField("adapter"):
            self.adapter = wire.adapter(response.adapter)
        self.file.write(response.chunk)
        self.sha256.update(response.chunk)
        self.received += len(response.chunk)
        if self.progress and self.adapter and response.chunk:
            self.progress(self.received, self.adapter.size_bytes)

    def finish(self) -> Adapter:
        """Return the version that was downloaded.

        Raises:
            DataLossError: The content does not match its digest.
        """
        digest = f"sha256:{self.sha256.hexdigest()}"
        if self.adapter is None or self.adapter.digest != digest:
            wanted = self.adapter.digest if self.adapter else "none"
            raise DataLossError(
                f"the downloaded bytes have digest {digest}; expected {wanted}",
                reason="DIGEST_MISMATCH",
            )
        return self.adapter


@contextmanager
def open_download(path: str | Path, progress: Progress | None) -> Iterator[Download]:
    """Open a temporary file that replaces `path` if the block succeeds.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("xb") as file:
            yield Download(file, progress, hashlib.sha256())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
