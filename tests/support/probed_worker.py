"""A real worker that can be told to make system calls as native code would: past the audit hook.

Run as `python -m tests.support.probed_worker FD`, with the worker's module in PROBED. A message
that names a probe is answered with the name of the error that it ends with, every other message
by the worker itself. With REFUSING the kernel lets it confine itself no further, as in a container
that does not allow it.
"""

import ctypes
import errno
import importlib
import mmap
import os
import resource
import socket
import threading
from collections.abc import Callable

from loramux_server.confinement import seccomp
from loramux_server.confinement.serve import Work, serve

_LIBRARY = ctypes.CDLL(None)
_OPEN, _RENAME, _SOCKET, _CONNECT, _WRITE = (
    _LIBRARY.open, _LIBRARY.rename, _LIBRARY.socket, _LIBRARY.connect, _LIBRARY.write,
)  # fmt: skip
_FORK, _EXECVE, _KILL, _PTRACE, _PRLIMIT, _MPROTECT = (
    _LIBRARY.fork, _LIBRARY.execve, _LIBRARY.kill, _LIBRARY.ptrace, _LIBRARY.prlimit,
    _LIBRARY.mprotect,
)  # fmt: skip
_ERRNO = _LIBRARY.__errno_location
_ERRNO.restype = ctypes.POINTER(ctypes.c_int)

_PAGE = mmap.mmap(-1, mmap.PAGESIZE)
_ADDRESS = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(_PAGE)))
_HIGH = ctypes.byref((ctypes.c_ulong * 2)(1 << 40, 1 << 40))
_PAIR = socket.socketpair()
_OTHER = _PAIR[0].fileno()
_ATTACH = 16


def _a_thread() -> int:
    thread = threading.Thread(target=str)
    thread.start()
    thread.join()
    return 0


PROBES: dict[bytes, Callable[[], int]] = {
    b"open": lambda: _OPEN(b"/etc/hostname", os.O_RDONLY),
    b"make": lambda: _OPEN(b"/tmp/made-by-a-confined-process", os.O_WRONLY | os.O_CREAT, 0o600),
    b"rename": lambda: _RENAME(b"/tmp/nothing", b"/tmp/else"),
    b"socket": lambda: _SOCKET(socket.AF_INET, socket.SOCK_STREAM, 0),
    b"connect": lambda: _CONNECT(_OTHER, None, 0),
    b"write": lambda: _WRITE(_OTHER, b"x", 1),
    b"fork": _FORK,
    b"signal": lambda: _KILL(os.getppid(), 0),
    b"limit": lambda: _PRLIMIT(0, resource.RLIMIT_AS, _HIGH, None),
    b"code": lambda: _MPROTECT(_ADDRESS, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC),
    b"execve": lambda: _EXECVE(b"/bin/true", None, None),
    b"ptrace": lambda: _PTRACE(_ATTACH, os.getppid(), None, None),
    b"a thread": _a_thread,
}


def prepare(message: bytes) -> Work | bytes:
    work: Work = importlib.import_module(os.environ["PROBED"]).prepare(message)
    if "REFUSING" in os.environ:
        seccomp.confine()

    def answer(message: bytes) -> bytes | None:
        if message not in PROBES:
            return work.answer(message)
        return errno.errorcode[_ERRNO()[0]].encode() if PROBES[message]() == -1 else b""

    return Work(work.greeting, answer, work.who, work.memory, work.cpu_seconds)


if __name__ == "__main__":
    serve(prepare)
