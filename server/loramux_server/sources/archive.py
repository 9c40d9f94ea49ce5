"""Reads the files of a tar archive from a stream, plain or gzip-compressed, within bounds.

tarfile reads headers of any declared length into memory; here it only parses single blocks.
"""

import itertools
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 64 << 10
"""Largest long name or pax header."""
_MAX_BYTES = 64 << 30
"""Largest archive, uncompressed."""
_MAX_FILES = 10_000
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_RECORD = re.compile(rb"(\d+) ([^=]+)=")


class ArchiveError(Exception):
    """The archive is malformed, too large, or has an unsupported compression."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive."""

    path: str
    size: int
    """In bytes."""
    chunks: Iterator[bytes]
    """Its content; invalid once the next member is requested."""


def members(chunks: Iterator[bytes]) -> Iterator[Member]:
    """Yield the files of an archive, and read it to its end.

    Raises:
        ArchiveError: It cannot be read, or is too large.
    """
    flow = _Flow(_unpacked(chunks))
    path, size, count = "", -1, 0
    while any(block := flow.exactly(_BLOCK)):
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ArchiveError(f"a header of the archive is not valid: {error}") from error
        if (count := count + 1) > _MAX_FILES:
            raise ArchiveError(f"the archive has more than {_MAX_FILES} entries")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            said = _header(flow, info)
            if info.type == tarfile.XHDTYPE:
                path, size = _records(said, path, size)
            else:
                path = said.rstrip(b"\0").decode(errors="surrogateescape")
            continue
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        if info.type in (tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGLINK):
            flow.skip(_padded(info.size))
            continue
        length = max(info.size, 0) if size < 0 else size
        end = flow.at + (_padded(length) if has_data else 0)
        if info.type in _PLAIN:
            yield Member(path or info.name, length, flow.chunks(length))
        flow.skip(end - flow.at)
        path, size = "", -1
    flow.skip_all()


def _header(flow: "_Flow", info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= _MAX_HEADER_BYTES:
        raise ArchiveError(
            f"a header of the archive has {info.size} bytes; expected at most {_MAX_HEADER_BYTES}"
        )
    return flow.exactly(_padded(info.size))[: info.size]


def _records(said: bytes, path: str, size: int) -> tuple[str, int]:
    """Return `path` and `size`, overridden by the records of a pax header."""
    at = 0
    while found := _RECORD.match(said, at):
        end = at + int(found[1][:9])
        value = said[found.end() : end].rstrip(b"\n")
        if found[2] == b"path":
            path = value.decode(errors="surrogateescape")
        elif found[2] == b"size" and value.isdigit():
            size = int(value[:18])
        at = max(end, found.end())
    return path, size


def _padded(size: int) -> int:
    return -(-max(size, 0) // _BLOCK) * _BLOCK


class _Flow:
    """Reads any number of bytes from a stream of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.at = 0
        """Bytes read so far."""
        self._chunks = chunks
        self._left = memoryview(b"")

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes."""
        while size > 0:
            if not self._left:
                self._left = memoryview(next(self._chunks, b""))
            if not self._left:
                raise ArchiveError("the archive is truncated")
            chunk, self._left = self._left[:size], self._left[size:]
            size -= len(chunk)
            self.at += len(chunk)
            if self.at > _MAX_BYTES:
                raise ArchiveError(f"the archive has more than {_MAX_BYTES} bytes")
            yield bytes(chunk)

    def exactly(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        return b"".join(self.chunks(size))

    def skip(self, size: int) -> None:
        """Skip `size` bytes."""
        for _ in self.chunks(size):
            pass

    def skip_all(self) -> None:
        """Skip the rest, which is padding."""
        self._left = memoryview(b"")
        for chunk in self._chunks:
            self.at += len(chunk)
            if self.at > _MAX_BYTES:
                raise ArchiveError(f"the archive has more than {_MAX_BYTES} bytes")


def _unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the uncompressed bytes; parallel compressors write several gzip members."""
    first = b""
    while len(first) < len(_ZSTD) and (chunk := next(chunks, b"")):
        first += chunk
    if first.startswith(_ZSTD):
        raise ArchiveError("the archive is compressed with zstd; expected gzip or no compression")
    if not first.startswith(_GZIP):
        yield first
        yield from chunks
        return
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for packed in itertools.chain((first,), chunks):
        chunk = packed.lstrip(b"\0") if unpack.eof else packed
        while chunk:
            if unpack.eof:
                unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                came = unpack.decompress(chunk, _CHUNK_BYTES)
            except zlib.error as error:
                raise ArchiveError("the archive is not valid gzip") from error
            if came:
                yield came
            chunk = unpack.unused_data.lstrip(b"\0") if unpack.eof else unpack.unconsumed_tail
    if not unpack.eof:
        raise ArchiveError("the gzip stream of the archive is truncated")
