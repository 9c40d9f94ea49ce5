"""The main loop of a sandboxed process, started as `python -m MODULE FD`.

It receives its setup, prepares, locks itself down, reports which restrictions the system does not
enforce, and answers messages until the other side closes the socket.
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loramux_server.confinement.lockdown import lock_down
from loramux_server.wire.channel import read_message, write_message


@dataclass(frozen=True, slots=True)
class Work:
    """What a sandboxed process does once it is ready."""

    greeting: bytes
    """Its first answer, sent when it is ready."""
    answer: Callable[[bytes], bytes | None]
    """Returns the answer to a message; None if the message has none."""
    who: str
    """What error messages call the offender, such as "a template"."""
    memory: int
    """Limit of the address space in bytes, including the interpreter."""
    cpu_seconds: float
    """Limit of processor time for one answer."""


def serve(prepare: Callable[[bytes], Work | bytes]) -> None:
    """Answer messages on the inherited socket until the other side closes it.

    Args:
        prepare: Takes the first message; returns the work to do, or an answer that says why there
            is none.
    """
    # These signals reach the whole process group; the parent decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    setup = read_message(connection)
    if setup is None:
        return
    work = prepare(setup)
    if isinstance(work, bytes):
        write_message(connection, b"")
        write_message(connection, work)
        return
    missing = lock_down(work.memory, work.who)
    with contextlib.suppress(ConnectionError):  # the other side has closed
        write_message(connection, ", ".join(missing).encode())
        write_message(connection, work.greeting)
        while (message := read_message(connection)) is not None:
            with limited(work.cpu_seconds):
                answer = work.answer(message)
            if answer is not None:
                write_message(connection, answer)


def silence() -> None:
    """Redirect standard error to /dev/null: untrusted input could write to the log there."""
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())


def address_space() -> int:
    """Return the current size of this process's address space in bytes."""
    import psutil

    return int(psutil.Process().memory_info().vms)


@contextlib.contextmanager
def limited(cpu_seconds: float) -> Iterator[None]:
    """Kill this process if the block takes longer, even in the middle of an operation.

    Args:
        cpu_seconds: Limit of processor time, summed over all threads.
    """
    # The default action of SIGPROF terminates the process.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
