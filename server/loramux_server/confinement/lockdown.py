"""How a process permanently gives up what it does not need to handle untrusted input."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable

from loramux_server.confinement import kernel, landlock, seccomp

_FORBIDDEN = (
    "open", "import", "os.", "socket.", "subprocess.", "shutil.", "ctypes.", "pickle.", "marshal.",
    "mmap.", "pty.", "signal.", "fcntl.", "tempfile.", "glob.", "urllib.", "http.", "sqlite3.",
    "webbrowser.", "syslog.", "setopencodehook", "sys.settrace", "gc.",
)  # fmt: skip
"""Prefixes of the audit events that are refused."""

_LAYERS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("no_new_privs", kernel.set_no_new_privs),
    ("Landlock", landlock.confine),
    # Last, because its filter forbids the calls of the other two.
    ("seccomp", seccomp.confine),
)
"""What the Linux kernel enforces, in the order in which it is applied."""


def lock_down(memory: int, who: str) -> list[str]:
    """Deny this process files, sockets, child processes and imports from now on.

    Resource limits hold on every system. On Linux the kernel enforces the rest. Python's audit hook
    names what was tried before the kernel refuses it; alone, it cannot stop native code.

    Args:
        memory: Limit of the address space in bytes, including the interpreter.
        who: What error messages call the offender, such as "a template".

    Returns:
        What this Linux kernel does not enforce, and why; empty on other systems.
    """
    for limit, size in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
            resource.setrlimit(limit, (size, size))
    missing = _confine_by_kernel() if sys.platform == "linux" else []

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{who} is not allowed to use {event}")

    sys.addaudithook(refuse)
    return missing


def _confine_by_kernel() -> list[str]:
    # Without TZ, libc checks /etc/localtime on every call.
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()
    missing = []
    for name, confine in _LAYERS:
        try:
            confine()
        except OSError as error:
            missing.append(f"{name} ({error.strerror})")
    return missing
