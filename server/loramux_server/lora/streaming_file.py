"""Streaming file reads: the first bytes are used while the rest is still read and hashed."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import ClassVar

from loramux_server.hashes import Digest, Hash, Seal
from loramux_server.lora.yield_cpu import yield_cpu

_MAX_KEPT = 128 << 20
_PIECE = 1 << 20
_MAX_SEALS = 1 << 16


class Seals:
    """Seals (fast hashes) by digest, computed for files without a seal or with a wrong one.

    A missing seal is computed after the file's load has ended, unless another load follows at once.
    """

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._unreported: deque[tuple[str, str]] = deque(maxlen=_MAX_SEALS)

    def get(self, digest: str) -> str | None:
        """Return the seal of the file with `digest`, if known."""
        return self._found.get(digest)

    def put(self, digest: str, seal: str) -> None:
        """Store a seal; the oldest ones are dropped if there are too many."""
        while len(self._found) >= _MAX_SEALS:
            self._found.pop(next(iter(self._found)), None)
        self._found[digest] = seal
        self._unreported.append((digest, seal))

    def take(self) -> dict[str, str]:
        """Return the seals found since the last call: digest -> seal."""
        return dict(self._unreported.popleft() for _ in range(len(self._unreported)))


class StreamingFile:
    """The bytes of a file that is being read by another thread."""

    def __init__(self, buffer: memoryview, digest: str, seal: str, seals: Seals) -> None:
        self._buffer = buffer
        self._digest = digest
        self._seals = seals
        self._seal = seals.get(digest) or seal
        self._is_verified = False
        self._end = 0
        self._has_ended = False
        self._more = threading.Condition()
        self.reading: Future[str]
        """Resolves to the hash of all bytes, or to the error of a read."""

    def __len__(self) -> int:
        """Return the size of the file in bytes when it was opened."""
        return len(self._buffer)

    def __getitem__(self, span: slice) -> memoryview:
        """Wait for `span`, and return it; it is shorter if the file ends before.

        Raises:
            OSError: The file cannot be read.
        """
        data = self._buffer[span]
        end = len(self._buffer) if span.stop is None else min(span.stop, len(self._buffer))
        with self._more:
            self._more.wait_for(lambda: self._end >= end or self._has_ended)
        if self._end < end:
            self.reading.result()  # raises the error that ended it, if any
            data = self._buffer[: self._end][span]
        return data

    def is_right(self) -> bool:
        """Wait for the whole file, and return whether its bytes match its seal or digest.

        Raises:
            OSError: The file cannot be read.
        """
        found = self.reading.result()
        if not self._seal:
            self._is_verified = found == self._digest
            return self._is_verified
        if found == self._seal:
            return True
        # The seal itself may be wrong: the digest decides.
        digest = Digest()
        for piece in self._pieces():
            digest.update(piece)
        is_right = digest.text() == self._digest
        if is_right:
            self._seals.put(self._digest, found)
        return is_right

    def seal(self, is_in_the_way: threading.Event) -> None:
        """Compute and store the seal of a file verified by digest; stop if `is_in_the_way`."""
        if not self._is_verified:
            return
        seal = Seal()
        for piece in self._pieces():
            if is_in_the_way.is_set():
                return
            seal.update(piece)
        self._seals.put(self._digest, seal.text())

    def read(self, file: FileIO) -> str:
        """Read all of `file`, and return its seal, or its digest if no seal is known."""
        hashed: Hash = Seal() if self._seal else Digest()
        buffer = self._buffer
        try:
            while count := file.readinto(buffer[self._end : self._end + _PIECE]):
                with self._more:
                    begin, self._end = self._end, self._end + count
                    self._more.notify()
                hashed.update(buffer[begin : self._end])
                yield_cpu()
        finally:
            with self._more:
                self._has_ended = True
                self._more.notify()
        return hashed.text()

    def _pieces(self) -> Iterator[memoryview]:
        """Yield the bytes read, piece by piece."""
        for begin in range(0, self._end, _PIECE):
            yield self._buffer[begin : min(begin + _PIECE, self._end)]
            yield_cpu()


class Reader(threading.local):
    """Reads one file at a time per thread.

    The buffer is reused: allocating new memory takes longer than reading the file.
    """

    seals: ClassVar[Seals] = Seals()
    """Shared by all threads."""

    def __init__(self) -> None:
        self._kept = bytearray()
        # Starts with the first file, and inherits the scheduling policy of the starting thread.
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._is_in_the_way = threading.Event()
        """Tells the helper to stop computing the previous file's seal."""

    @contextmanager
    def reading(self, path: Path, digest: str, seal: str = "") -> Iterator[StreamingFile]:
        """Read the file at `path` while the block runs; its bytes are invalid after the block.

        Args:
            path: The file.
            digest: Its expected digest.
            seal: Its expected seal; empty if unknown.

        Raises:
            OSError: It cannot be opened.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            if hasattr(os, "posix_fadvise"):  # read ahead from disk while hashing
                os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
            self._is_in_the_way.set()
            self._helper.submit(self._is_in_the_way.clear).result()  # runs after the previous task
            buffer = self._kept if size <= len(self._kept) else bytearray(size)
            if size <= _MAX_KEPT:
                self._kept = buffer
            streaming = StreamingFile(memoryview(buffer)[:size], digest, seal, self.seals)
            streaming.reading = self._helper.submit(streaming.read, file)
            try:
                yield streaming
            finally:
                streaming.reading.exception()  # the file must stay open until then
                self._helper.submit(streaming.seal, self._is_in_the_way)
