"""How the C library keeps the memory of a process that runs for long."""

import ctypes
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
