"""Tuning of malloc and the garbage collector for long-running processes."""

import ctypes
import gc
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_LARGE = 128 << 10
"""Bytes: the initial value of glibc's mmap threshold, which adapts to what is freed."""
_LARGEST = 32 << 20
"""Bytes: the maximum to which glibc raises it."""


def pin_mmap_threshold() -> None:
    """Make malloc return large allocations to the system as soon as they are freed.

    Otherwise glibc raises its mmap threshold and places allocations of megabytes on the heap, among
    small long-lived ones. The heap fragments: with uploads coming and going the process grows
    although it holds no more than before, and weights that are packed and freed leave gaps.
    """
    with suppress(AttributeError):  # only glibc has mallopt
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def trim_and_retain() -> None:
    """Return free memory to the system once, and retain what is freed from now on for reuse.

    Steps allocate the same sizes again and again; fresh memory would cost more than their work.
    """
    gc.collect()
    with suppress(AttributeError):  # only glibc has these
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def freeze_gc() -> None:
    """Exclude all current objects, which are long-lived, from garbage collection.

    A full collection traverses every live object and blocks the process: just after a frontend's
    start for 30 ms and more on a shared core.
    """
    gc.collect()
    gc.freeze()
