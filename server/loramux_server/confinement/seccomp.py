"""A seccomp filter that leaves a process what it needs to compute and to answer.

It refuses what is not listed here. Calls of which no library tries another way, and that only
an attack makes, end the process.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loramux_server.confinement import kernel
from loramux_server.confinement.system_calls import FIRST_COMMON, number

_PROT_EXEC = 0x4
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020000
"""All flags for namespaces that `clone` has."""
_PR_SET_NAME, _PR_GET_NAME = 15, 16

_ALLOWED = (
    # messages; the calls that an answer makes come first
    "recvfrom", "setitimer", "clock_gettime", "brk", "futex",
    # memory
    "munmap", "mremap", "madvise",
    # time, and random numbers
    "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "getrusage",
    "getrandom",
    # threads and signals of its own, and its end
    "sched_yield", "sched_getaffinity", "getcpu", "membarrier", "rseq", "set_robust_list",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
    "getpid", "gettid", "sysinfo", "close", "exit", "exit_group",
)  # fmt: skip
_DEADLY = (
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "add_key", "request_key", "keyctl", "init_module", "finit_module",
    "delete_module", "kexec_load", "kexec_file_load", "reboot", "iopl", "ioperm", "modify_ldt",
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "move_mount",
    "fsopen", "fsconfig", "fsmount", "open_by_handle_at",
)  # fmt: skip

_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_LOAD, _AND, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
"""Instructions: load a word of the call, mask it, compare it and jump, return."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets of what a filter is told of a call."""
_ALLOW, _REFUSE, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Numbers of the architectures; both have the least significant byte of a word first."""
_X32 = 0x40000000
"""Numbers from here on are those of a third ABI of x86_64, whose calls are not looked at."""


@dataclass(frozen=True, slots=True)
class _Only:
    """Holds where half an argument, and a mask, are one of some values."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    is_high: bool = False


def _is_null(argument: int) -> tuple[_Only, _Only]:
    return _Only(argument, (0,)), _Only(argument, (0,), is_high=True)


def _conditions() -> dict[str, tuple[_Only, ...]]:
    """Return what has to hold for each call that is allowed sometimes."""
    return {
        "sendto": _is_null(4),  # to the other side of the socket, and nowhere else
        "mmap": (_Only(2, (0,), mask=_PROT_EXEC),),
        "mprotect": (_Only(2, (0,), mask=_PROT_EXEC),),
        "write": (_Only(0, (1, 2)),),  # last words of libraries
        "writev": (_Only(0, (1, 2)),),
        "clone": (_Only(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NEW),),
        "prctl": (_Only(0, (_PR_SET_NAME, _PR_GET_NAME)),),  # of a thread
        "tgkill": (_Only(0, (os.getpid(),)),),  # abort
        "prlimit64": (_Only(0, (0,)), *_is_null(2)),  # to read one's own limits
    }


def confine() -> None:
    """Refuse this process, with all of its threads, what it does not need, for good.

    It opens no file, socket or process, signals no other, writes only to standard output and
    error, makes no memory executable, and changes no limit. A refused call fails with EPERM, or
    with ENOSYS where a library takes an older one then. A call that only an attack makes ends
    the process with SIGSYS, as one of another architecture does.

    Raises:
        OSError: The kernel, or what confines this process already, does not take a filter; or
            system calls of this architecture are not known here.
    """
    machine = os.uname().machine
    if machine not in _AUDIT or struct.calcsize("P") != 8:
        raise OSError(errno.ENOTSUP, f"system calls of {machine} are not known")
    instructions = b"".join(_program(machine))
    code = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // 8, ctypes.addressof(code))
    seccomp = number("seccomp", machine)
    assert seccomp is not None
    if kernel.call(seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(program)):
        raise OSError(errno.EBUSY, "a thread has another filter")


class _Program(ctypes.Structure):
    """What the kernel calls `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _program(machine: str) -> Iterator[bytes]:
    """Yield the instructions, of 8 bytes each."""
    yield _instruction(_LOAD, _ARCHITECTURE)
    yield _instruction(_EQUALS, _AUDIT[machine], if_true=1)
    yield _instruction(_RETURN, _KILL_PROCESS)
    yield _instruction(_LOAD, _NUMBER)
    if machine == "x86_64":
        yield _instruction(_AT_LEAST, _X32, if_false=1)
        yield _instruction(_RETURN, _KILL_PROCESS)
    allowed = [_instruction(_RETURN, _ALLOW)]
    for name in _ALLOWED:
        yield from _where(name, machine, allowed)
    for name, conditions in _conditions().items():
        yield from _where(name, machine, [*map(_check, conditions), *allowed])
    for name in _DEADLY:
        yield from _where(name, machine, [_instruction(_RETURN, _KILL_PROCESS)])
    # What libraries try first where a kernel is new.
    yield _instruction(_AT_LEAST, FIRST_COMMON, if_false=1)
    yield _instruction(_RETURN, _REFUSE | errno.ENOSYS)
    yield _instruction(_RETURN, _REFUSE | errno.EPERM)


def _where(name: str, machine: str, then: Sequence[bytes]) -> Iterator[bytes]:
    """Yield what does `then` if the call is `name`."""
    wanted = number(name, machine)
    if wanted is not None:
        code = b"".join(then)
        yield _instruction(_EQUALS, wanted, if_false=len(code) // 8)
        yield code


def _check(condition: _Only) -> bytes:
    """Return what refuses a call unless `condition` holds."""
    offset = _ARGUMENTS + 8 * condition.argument + 4 * condition.is_high
    code = [_instruction(_LOAD, offset), _instruction(_AND, condition.mask)]
    for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
        code.append(_instruction(_EQUALS, value, if_true=left))
    return b"".join((*code, _instruction(_RETURN, _REFUSE | errno.EPERM)))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one, with how many are skipped after it where a comparison holds, or does not."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
