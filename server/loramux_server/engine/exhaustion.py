"""What an engine does that has no more memory: it says so, and ends."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from loramux_server.wire.channel import write_message
from loramux_server.wire.messages import OutOfMemory, encode

_log = logging.getLogger(__name__)

_OUT_OF_MEMORY = encode(OutOfMemory())
"""Made in time: later there may be no memory for it."""
_SAID = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "[CUDA]: out of memory",
)
"""By torch of memory of the host; by torch and Triton of a device where what they call takes memory
itself, such as a graph that is made, a library or a kernel that is loaded."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that there was no more memory, of the host or the device."""
    if isinstance(error, MemoryError):
        return True
    # torch's, known without torch: some have a class, others a text.
    is_of_device = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (
        is_of_device or any(said in str(error) for said in _SAID)
    )


@contextmanager
def last_words(connection: socket.socket) -> Iterator[None]:
    """Tell the other side if memory runs out in the block, and end the process then.

    What a step leaves half done is not to be trusted: another engine begins anew.
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
