"""Framing on the socket pair between frontend and engine: a 4-byte length, then the message."""

import socket
import struct

LENGTH = struct.Struct("<I")


def read_message(connection: socket.socket) -> bytes | None:
    """Return the next message, or None once the other side has closed."""
    head = _read_exactly(connection, LENGTH.size)
    if head is None:
        return None
    return _read_exactly(connection, LENGTH.unpack(head)[0])


def write_message(connection: socket.socket, message: bytes) -> None:
    """Send one message."""
    connection.sendall(frame(message))


def frame(message: bytes) -> bytes:
    """Return `message` prefixed with its length."""
    return LENGTH.pack(len(message)) + message


def _read_exactly(connection: socket.socket, size: int) -> bytes | None:
    message = bytearray(size)
    view = memoryview(message)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return bytes(message)
