"""A file on its way to memory: its first bytes are used while the rest is read and hashed."""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from loramux_server.lora.give_way import give_way

_MAX_KEPT = 128 << 20
_PIECE = 1 << 20


class Arriving:
    """The bytes of a file, of which more come until all are there."""

    def __init__(self, room: memoryview) -> None:
        self._room = room
        self._end = 0
        self._has_ended = False
        self._more = threading.Condition()
        self.reading: Future[str]
        """Ends with the digest of all bytes, or with the error of a read."""

    def __len__(self) -> int:
        """Return the bytes of the whole file, as long as it was when it was opened."""
        return len(self._room)

    def __getitem__(self, span: slice) -> memoryview:
        """Wait for `span`, and return it; it is shorter where the file has ended.

        Raises:
            OSError: The file cannot be read.
        """
        data = self._room[span]
        end = len(self._room) if span.stop is None else min(span.stop, len(self._room))
        with self._more:
            self._more.wait_for(lambda: self._end >= end or self._has_ended)
        if self._end < end:
            self.reading.result()  # raises what ended it
            data = self._room[: self._end][span]
        return data

    def digest(self) -> str:
        """Wait for the whole file, and return what identifies its bytes.

        Raises:
            OSError: The file cannot be read.
        """
        return self.reading.result()

    def read(self, file: FileIO) -> str:
        """Take in all of `file`, and return its digest."""
        digest, room = hashlib.sha256(), self._room
        try:
            while count := file.readinto(room[self._end : self._end + _PIECE]):
                with self._more:
                    begin, self._end = self._end, self._end + count
                    self._more.notify()
                digest.update(room[begin : self._end])
                give_way()
        finally:
            with self._more:
                self._has_ended = True
                self._more.notify()
        return f"sha256:{digest.hexdigest()}"


class Reader(threading.local):
    """Reads one file at a time for each thread.

    The room for its bytes is used again: new memory costs more than what is read.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        # It begins with the first file, and gives way as the thread does that begins it.
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="read")

    @contextmanager
    def reading(self, path: Path) -> Iterator[Arriving]:
        """Read the file at `path` while the block runs; its bytes are gone after it.

        Raises:
            OSError: It cannot be opened.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            if hasattr(os, "posix_fadvise"):  # the disk goes on reading while what came is hashed
                os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
            room = self._kept if size <= len(self._kept) else bytearray(size)
            if size <= _MAX_KEPT:
                self._kept = room
            arriving = Arriving(memoryview(room)[:size])
            arriving.reading = self._helper.submit(arriving.read, file)
            try:
                yield arriving
            finally:
                arriving.reading.exception()  # the room and the file are needed until then
