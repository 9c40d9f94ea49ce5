"""How the memory of a process that runs for long is kept."""

import ctypes
import gc
from contextlib import suppress

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""
_LARGE = 128 << 10
"""Bytes; what glibc begins with, before it goes by what was freed."""


def return_large_pieces() -> None:
    """Let large pieces go back to the system when they are freed, for as long as the process runs.

    Else glibc comes to keep pieces of megabytes among the small ones that stay: with uploads coming
    and going the process grows although it holds no more than before.
    """
    with suppress(AttributeError):  # of glibc's alone
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def keep_what_is_there() -> None:
    """Let the collector never again look at what there is now, which will stay.

    It goes through all that lives now and then, and nothing else goes on meanwhile: of a frontend
    that has just started, for 30 ms and more on a core that others use too.
    """
    gc.collect()
    gc.freeze()
