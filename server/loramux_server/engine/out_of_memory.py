"""An engine that runs out of memory reports it and ends."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from loramux_server.wire.channel import write_message
from loramux_server.wire.messages import OutOfMemory, encode

_log = logging.getLogger(__name__)

_OUT_OF_MEMORY = encode(OutOfMemory())
"""Encoded in advance: later there may be no memory for it."""
_MESSAGES = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "[CUDA]: out of memory",
)
"""Messages of torch for host memory, and of torch and Triton for device memory that is allocated
outside torch's allocator, such as for a CUDA graph, a library or a kernel."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that host or device memory ran out."""
    if isinstance(error, MemoryError):
        return True
    # torch's, recognized without importing torch: some by class, others by message.
    is_of_device = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (
        is_of_device or any(message in str(error) for message in _MESSAGES)
    )


@contextmanager
def exit_on_out_of_memory(connection: socket.socket) -> Iterator[None]:
    """If memory runs out in the block, tell the other side and end the process.

    The state that an interrupted step leaves cannot be trusted; a new engine starts afresh.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        with suppress(MemoryError):
            _log.error("out of memory", exc_info=error)
        write_message(connection, _OUT_OF_MEMORY)
        raise SystemExit(1) from error
