"""HTTP/2 by hand: what no client library would do."""

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


class RawConnection:
    """A connection that sends what a test wants, and answers nothing of itself."""

    def __init__(self, target: str, *, window: int = 65535) -> None:
        """Connect; `window` bytes of each stream may come."""
        host, port = target.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._next_stream = 1
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings))

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        self._socket.sendall(_frame(kind, flags, stream, payload))

    def send_together(self, kind: int, payloads: Sequence[bytes]) -> None:
        """Send a frame for each payload at once: the other side may close after some of them."""
        self._socket.sendall(b"".join(_frame(kind, 0, 0, payload) for payload in payloads))

    def call(self, method: str, message: bytes) -> int:
        """Begin a call with its only message and return the number of its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = {
            ":method": "POST", ":scheme": "http", ":path": method, ":authority": "test",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
        self.send(HEADERS, END_HEADERS, stream, block)
        self.send(DATA, END_STREAM, stream, struct.pack(">?I", False, len(message)) + message)
        return stream

    def frames(self) -> Iterator[Frame]:
        """Yield what comes until the server closes the connection."""
        with contextlib.suppress(ConnectionError):
            while head := self._read(9):
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                stream = int.from_bytes(head[5:]) & 0x7FFFFFFF
                yield Frame(kind, flags, stream, self._read(length))

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count and (more := self._socket.recv(count - len(found))):
            found += more
        return found

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    """Return a string as HPACK has it, neither compressed nor longer than 126 bytes."""
    return bytes([len(text)]) + text.encode()
