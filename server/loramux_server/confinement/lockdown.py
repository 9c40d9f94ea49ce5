"""How a process gives up, for good, what it does not need to work on untrusted input."""

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
"""What audit events begin with that are refused."""

_LAYERS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("no_new_privs", kernel.forgo_privileges),
    ("Landlock", landlock.confine),
    # Last, because it lets nothing more be restricted.
    ("seccomp", seccomp.confine),
)
"""What the kernel of Linux enforces, in this order."""


def lock_down(memory: int, who: str) -> list[str]:
    """Let this process open no file, socket or process from now on, and import nothing.

    Limits of the system hold everywhere. On Linux the kernel enforces the rest. Python's audit
    hook says what was tried, before the kernel refuses it; alone it does not hold native code.

    Args:
        memory: Bytes of address space, Python's own among them.
        who: What the message of a refusal calls that which tried.

    Returns:
        What this Linux does not enforce, and why; nothing on another system.
    """
    for limit, size in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower one holds already
            resource.setrlimit(limit, (size, size))
    missing = _have_the_kernel_confine() if sys.platform == "linux" else []

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{who} must not use {event}")

    sys.addaudithook(refuse)
    return missing


def _have_the_kernel_confine() -> list[str]:
    # Where it is not said which time zone it is, libc looks at the file each time.
    os.environ.setdefault("TZ", ":/etc/localtime")
    time.tzset()
    missing = []
    for name, confine in _LAYERS:
        try:
            confine()
        except OSError as error:
            missing.append(f"{name} ({error.strerror})")
    return missing
