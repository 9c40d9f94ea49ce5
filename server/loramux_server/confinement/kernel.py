"""System calls that Python has no function for."""

import ctypes
import os

_PR_SET_NO_NEW_PRIVS = 38


def call(number: int, *arguments: int) -> int:
    """Make the system call `number` and return what it returns.

    Args:
        number: Of the system call, on this architecture.
        arguments: Its arguments; pointers are addresses.

    Raises:
        OSError: The kernel refuses it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    # What is passed to a variadic function is converted to int, which has 32 bits.
    returned = int(library.syscall(*map(ctypes.c_long, (number, *arguments))))
    if returned == -1:
        _raise(ctypes.get_errno())
    return returned


def forgo_privileges() -> None:
    """Let this thread, and what it starts, gain no privileges: Landlock and seccomp require it.

    Raises:
        OSError: The kernel refuses it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if library.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), one, zero, zero, zero):
        _raise(ctypes.get_errno())


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))
