"""How the memory of a process that runs for long is kept."""

import ctypes
import gc
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_LARGE = 128 << 10
"""Bytes; what glibc begins with, before it goes by what was freed."""
_LARGEST = 32 << 20
"""Bytes; what glibc comes to at most."""


def return_large_pieces() -> None:
    """Let large pieces go back to the system when they are freed.

    Else glibc comes to keep pieces of megabytes among the small ones that stay: with uploads coming
    and going the process grows although it holds no more than before, and weights that were only
    held until they were packed leave gaps.
    """
    with suppress(AttributeError):  # of glibc's alone
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def return_once() -> None:
    """Give back what is free, and keep what is freed from now on, to use it again.

    Steps ask for the same pieces again and again, and new memory costs more than what they do.
    """
    gc.collect()
    with suppress(AttributeError):  # of glibc's alone
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def keep_what_is_there() -> None:
    """Let the collector never again look at what there is now, which will stay.

    It goes through all that lives now and then, and nothing else goes on meanwhile: of a frontend
    that has just started, for 30 ms and more on a core that others use too.
    """
    gc.collect()
    gc.freeze()
