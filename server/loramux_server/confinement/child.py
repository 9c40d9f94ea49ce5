"""A child process that handles untrusted input: how it is started, and how it ends."""

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
"""How long it may take to become ready."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ", "VIRTUAL_ENV")
"""The environment variables that it inherits."""
_HAS = {"TOKENIZERS_PARALLELISM": "false"}
"""Set in addition: Landlock cannot confine threads that start before it is applied."""


class ExitCause(enum.Enum):
    """Why a process ended without answering."""

    TIME = "exceeds the time limit of {}"
    MEMORY = "exceeds the memory limit of {}"
    SYSTEM_CALL = "makes a forbidden system call"

    def describe(self, who: str) -> str:
        """Return it for messages; `who` is what caused it, such as "a template"."""
        return self.value.format(who)


def spawn(
    module: str, variables: Mapping[str, str] | None = None
) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start `python -m MODULE FD`; return the other end of the socket FD, and the process.

    Args:
        module: The module to run.
        variables: Environment variables in addition to those that every such process gets.

    Raises:
        OSError: The system is out of processes, file descriptors or memory.
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
    """End the process; return its exit code, or None if it had to be killed."""
    try:
        # Give one that is exiting by itself the time to, so that its exit code is known.
        return process.wait(0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def exit_cause_of(code: int | None) -> ExitCause:
    """Return why a process ended, given the code that `end` returned."""
    if code == -signal.SIGSYS:
        return ExitCause.SYSTEM_CALL
    return ExitCause.TIME if code in (-signal.SIGPROF, None) else ExitCause.MEMORY


@functools.cache
def log_missing_layers(work: str, missing: bytes) -> None:
    """Log, once, which of the restrictions the system does not enforce.

    Args:
        work: What the process does, such as "renders chat templates".
        missing: What the process reported when it locked itself down; empty if nothing is missing.
    """
    if missing:
        _log.warning("the process that %s is sandboxed without %s", work, missing.decode())
