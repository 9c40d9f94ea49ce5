"""A Landlock domain without rules: no file can be opened, created or removed, no TCP port used."""

import ctypes
import errno
import os
from pathlib import Path

from loramux_server.confinement import kernel

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""System call numbers, the same on all architectures."""
_GET_VERSION = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Landlock ABI version -> number of file system access rights that it knows."""
_NETWORK_VERSION, _SCOPE_VERSION, _ALL_THREADS_VERSION = 4, 6, 8
_BIND_AND_CONNECT = 0b11
_UNIX_SOCKETS_AND_SIGNALS = 0b11
_ALL_THREADS = 1 << 3


class _Rules(ctypes.Structure):
    """`struct landlock_ruleset_attr`; older kernels expect its last fields to be zero."""

    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def confine() -> None:
    """Permanently deny this process files, TCP, foreign abstract sockets and signals to others.

    What this kernel's Landlock does not cover stays allowed. Open files stay open.

    Raises:
        OSError: The kernel has no Landlock, or it is disabled, or an enclosing sandbox forbids it.
            Or the process has other threads and this kernel confines only the calling one; that has
            been done then.
    """
    version = kernel.call(_CREATE_RULESET, 0, 0, _GET_VERSION)
    rights = max(count for first, count in _FILE_RIGHTS.items() if first <= version)
    rules = _Rules(
        files=(1 << rights) - 1,
        network=_BIND_AND_CONNECT if version >= _NETWORK_VERSION else 0,
        scoped=_UNIX_SOCKETS_AND_SIGNALS if version >= _SCOPE_VERSION else 0,
    )
    is_for_all = version >= _ALL_THREADS_VERSION
    others = len(list(Path("/proc/self/task").iterdir())) - 1
    ruleset = kernel.call(_CREATE_RULESET, ctypes.addressof(rules), ctypes.sizeof(rules), 0)
    try:
        kernel.call(_RESTRICT_SELF, ruleset, _ALL_THREADS if is_for_all else 0)
    finally:
        os.close(ruleset)
    if others and not is_for_all:
        raise OSError(errno.ENOTSUP, f"{others} threads were already running")
