"""A child process that works on what strangers wrote: how it is started, and how it ends."""

import contextlib
import enum
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

_log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""How long it may take until it is ready."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ", "VIRTUAL_ENV")
"""What it may know of the environment."""
_HAS = {"TOKENIZERS_PARALLELISM": "false"}
"""What its environment has beside: threads that begin early can be out of reach of Landlock."""


class Offence(enum.Enum):
    """Why a process did not live to answer."""

    TIME = "takes more time than {} may"
    MEMORY = "takes more memory than {} may"
    SYSTEM_CALL = "makes a forbidden system call"

    def by(self, who: str) -> str:
        """Return it for messages, where `who` is whose fault it is, such as "a template"."""
        return self.value.format(who)


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
            env=known | _HAS | dict(variables or {}),
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


def offence_of(code: int | None) -> Offence:
    """Return why a process ended so, as `end` tells it."""
    if code == -signal.SIGSYS:
        return Offence.SYSTEM_CALL
    return Offence.TIME if code in (-signal.SIGPROF, None) else Offence.MEMORY


@functools.cache
def tell_missing(work: str, missing: bytes) -> None:
    """Log, once, what the system does not enforce of what confines a process.

    Args:
        work: What the process does, such as "renders chat templates".
        missing: What it said about that before anything else; empty where there is nothing.
    """
    if missing:
        _log.warning("the process that %s is confined without %s", work, missing.decode())
