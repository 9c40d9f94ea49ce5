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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that there was no more memory, of the host or the device."""
    if isinstance(error, MemoryError):
        return True
    # torch's, known without torch: of a device they have a class, of the host a text.
    is_of_device = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (
        is_of_device or "can't allocate memory" in str(error)
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
