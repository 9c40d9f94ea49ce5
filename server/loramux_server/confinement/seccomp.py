"""A seccomp filter that leaves a process only what it needs to compute and to answer.

It is an allowlist. Calls that only an attack makes, and for which libraries have no fallback, kill
the process.
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
"""All namespace flags of `clone`."""
_PR_SET_NAME, _PR_GET_NAME = 15, 16

_ALLOWED = (
    # messages; first the calls that every answer makes
    "recvfrom", "setitimer", "clock_gettime", "brk", "futex",
    # memory
    "munmap", "mremap", "madvise",
    # clocks and random numbers
    "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "getrusage",
    "getrandom",
    # its own threads and signals, and exiting
    "sched_yield", "sched_getaffinity", "getcpu", "membarrier", "rseq", "set_robust_list",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
    "getpid", "gettid", "sysinfo", "close", "exit", "exit_group",
)  # fmt: skip
_KILL = (
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "add_key", "request_key", "keyctl", "init_module", "finit_module",
    "delete_module", "kexec_load", "kexec_file_load", "reboot", "iopl", "ioperm", "modify_ldt",
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "move_mount",
    "fsopen", "fsconfig", "fsmount", "open_by_handle_at",
)  # fmt: skip

_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_LOAD, _AND, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
"""BPF instructions: load a word of `seccomp_data`, AND, jump if equal, jump if at least, return."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""
_ALLOW, _REFUSE, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Audit numbers (AUDIT_ARCH_*); both architectures are little-endian."""
_X32 = 0x40000000
"""Call numbers from here on belong to the x32 ABI of x86_64, which is refused as a whole."""


@dataclass(frozen=True, slots=True)
class _Only:
    """Condition: one 32-bit half of an argument, ANDed with `mask`, is one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    is_high: bool = False


def _is_null(argument: int) -> tuple[_Only, _Only]:
    return _Only(argument, (0,)), _Only(argument, (0,), is_high=True)


def _conditions() -> dict[str, tuple[_Only, ...]]:
    """Return the conditions of each call that is allowed only with certain arguments."""
    return {
        "sendto": _is_null(4),  # no address: only to the other end of the socket pair
        "mmap": (_Only(2, (0,), mask=_PROT_EXEC),),
        "mprotect": (_Only(2, (0,), mask=_PROT_EXEC),),
        "write": (_Only(0, (1, 2)),),  # final error messages of libraries
        "writev": (_Only(0, (1, 2)),),
        "clone": (_Only(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NEW),),
        "prctl": (_Only(0, (_PR_SET_NAME, _PR_GET_NAME)),),  # names of threads
        "tgkill": (_Only(0, (os.getpid(),)),),  # for abort()
        "prlimit64": (_Only(0, (0,)), *_is_null(2)),  # only to read its own limits
    }


def confine() -> None:
    """Permanently deny this process, with all its threads, the system calls that it does not need.

    It can open no file, socket or process, signal no other process, write only to standard output
    and error, make no memory executable, and change no limit. A refused call fails with EPERM, or
    with ENOSYS where libraries then fall back to an older call. A call that only an attack makes,
    or one of another architecture, kills the process with SIGSYS.

    Raises:
        OSError: The kernel, or an enclosing sandbox, does not accept a filter; or the system call
            numbers of this architecture are not known here.
    """
    machine = os.uname().machine
    if machine not in _AUDIT or struct.calcsize("P") != 8:
        raise OSError(errno.ENOTSUP, f"the system call numbers of {machine} are not known")
    instructions = b"".join(_program(machine))
    code = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // 8, ctypes.addressof(code))
    seccomp = number("seccomp", machine)
    assert seccomp is not None
    if kernel.call(seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(program)):
        raise OSError(errno.EBUSY, "another thread has a different filter")


class _Program(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _program(machine: str) -> Iterator[bytes]:
    """Yield the BPF instructions, 8 bytes each."""
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
    for name in _KILL:
        yield from _where(name, machine, [_instruction(_RETURN, _KILL_PROCESS)])
    # Libraries try these first and fall back if the kernel does not have them.
    yield _instruction(_AT_LEAST, FIRST_COMMON, if_false=1)
    yield _instruction(_RETURN, _REFUSE | errno.ENOSYS)
    yield _instruction(_RETURN, _REFUSE | errno.EPERM)


def _where(name: str, machine: str, then: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the instructions that run `then` if the call is `name`."""
    wanted = number(name, machine)
    if wanted is not None:
        code = b"".join(then)
        yield _instruction(_EQUALS, wanted, if_false=len(code) // 8)
        yield code


def _check(condition: _Only) -> bytes:
    """Return the instructions that refuse the call unless `condition` holds."""
    offset = _ARGUMENTS + 8 * condition.argument + 4 * condition.is_high
    code = [_instruction(_LOAD, offset), _instruction(_AND, condition.mask)]
    for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
        code.append(_instruction(_EQUALS, value, if_true=left))
    return b"".join((*code, _instruction(_RETURN, _REFUSE | errno.EPERM)))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return a BPF instruction; `if_true`, `if_false`: how many to skip after a comparison."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
