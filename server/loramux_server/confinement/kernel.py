"""System calls for which Python has no function."""

import ctypes
import os

_PR_SET_NO_NEW_PRIVS = 38


def call(number: int, *arguments: int) -> int:
    """Make the system call `number` and return its result.

    Args:
        number: The number of the call on this architecture.
        arguments: Its arguments; pointers are passed as addresses.

    Raises:
        OSError: The call failed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    # ctypes passes variadic arguments as a 32-bit int unless they have a ctypes type.
    returned = int(library.syscall(*map(ctypes.c_long, (number, *arguments))))
    if returned == -1:
        _raise(ctypes.get_errno())
    return returned


def set_no_new_privs() -> None:
    """Set no_new_privs for this thread and its children; Landlock and seccomp require it.

    Raises:
        OSError: The kernel refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if library.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), one, zero, zero, zero):
        _raise(ctypes.get_errno())


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))
