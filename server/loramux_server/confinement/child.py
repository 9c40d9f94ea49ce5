"""A child process that works on what strangers wrote: how it is started, and how it ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

START_SECONDS = 60.0
"""How long it may take until it is ready."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ", "VIRTUAL_ENV")
"""What it may know of the environment."""


def spawn(
    module: str, variables: Mapping[str, str] | None = None
) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start `python -m MODULE FD`, and return the other end of the socket FD and the process.

    Args:
        module: What it runs.
        variables: What its environment has beside what every such process has.

    Raises:
        OSError: The system has nothing left for it.
    """
    known = {name: os.environ[name] for name in _KEPT if name in os.environ}
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as on_error:
        on_error.enter_context(ours)
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=known | dict(variables or {}),
        )
        on_error.pop_all()
    return ours, process


def end(process: "subprocess.Popen[bytes]") -> int | None:
    """End it; return the code with which it ended by itself, None if it did not."""
    try:
        # One that ended by itself is about to be reaped.
        return process.wait(0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def overdone(code: int | None) -> str:
    """Return what a process took too much of that ended so, as `end` tells it."""
    return "time" if code in (-signal.SIGPROF, None) else "memory"
