"""What a process is that works on what strangers wrote, seen from within: `python -m MODULE FD`.

It is sent what it needs to know, gets ready, gives up what it does not need, says what the system
does not enforce of that, and answers messages until the other side closes.
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
    """What such a process does once it is ready."""

    greeting: bytes
    """What it says first."""
    answer: Callable[[bytes], bytes | None]
    """Makes the answer to a message; None where there is none."""
    who: str
    """What the message of a refusal calls that which tried, such as "a template"."""
    memory: int
    """Bytes of address space, Python's own among them."""
    cpu_seconds: float
    """Processor time that one answer may take."""


def serve(prepare: Callable[[bytes], Work | bytes]) -> None:
    """Answer what comes on the inherited socket until the other side closes.

    Args:
        prepare: Is given the first message, and returns what is to be done, or what is said where
            nothing can be.
    """
    # They reach the whole process group, and who started this process says when it is over.
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
    with contextlib.suppress(ConnectionError):  # which is the other side's end
        write_message(connection, ", ".join(missing).encode())
        write_message(connection, work.greeting)
        while (message := read_message(connection)) is not None:
            with limited(work.cpu_seconds):
                answer = work.answer(message)
            if answer is not None:
                write_message(connection, answer)


def silence() -> None:
    """Let nothing more come to the log from here: what is written there strangers could write."""
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())


def address_space() -> int:
    """Return the bytes that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().vms)


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
