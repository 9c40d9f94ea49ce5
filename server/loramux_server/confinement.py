"""What a process gives up before it works on what strangers wrote."""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator

_FORBIDDEN = (
    "open", "import", "os.", "socket.", "subprocess.", "shutil.", "ctypes.", "pickle.", "marshal.",
    "mmap.", "pty.", "signal.", "fcntl.", "tempfile.", "glob.", "urllib.", "http.", "sqlite3.",
    "webbrowser.", "syslog.", "setopencodehook", "sys.settrace", "gc.",
)  # fmt: skip
"""What audit events begin with that are refused."""


def close_doors(memory: int, who: str) -> None:
    """Let this process open no file, socket or process from now on, and import nothing.

    Args:
        memory: Bytes of address space, Python's own among them.
        who: What the message of a refusal calls that which tried.
    """
    for limit, size in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower one holds already
            resource.setrlimit(limit, (size, size))

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{who} must not use {event}")

    sys.addaudithook(refuse)


@contextlib.contextmanager
def limited(cpu_seconds: float) -> Iterator[None]:
    """End this process, also in the middle of an operation, where the block takes longer.

    Args:
        cpu_seconds: Processor time of all threads.
    """
    # The default action of the signal ends the process.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def environment() -> dict[str, str]:
    """Return what such a process may know of the environment."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ}
