"""System call numbers of the supported architectures.

From the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
From 424 on they are the same on all architectures.
"""

_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "add_key": (248, 217), "bpf": (321, 280), "brk": (12, 214), "chroot": (161, 51),
    "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "clone": (56, 220), "clone3": (435, 435), "close": (3, 57), "delete_module": (176, 106),
    "execve": (59, 221), "execveat": (322, 281), "exit": (60, 93), "exit_group": (231, 94),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "futex": (202, 98), "getcpu": (309, 168), "getpid": (39, 172),
    "getrandom": (318, 278), "getrusage": (98, 165), "gettid": (186, 178),
    "gettimeofday": (96, 169), "init_module": (175, 105), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioperm": (173, None),
    "iopl": (172, None), "kexec_file_load": (320, 294), "kexec_load": (246, 104),
    "keyctl": (250, 219), "madvise": (28, 233), "membarrier": (324, 283),
    "mmap": (9, 222), "modify_ldt": (154, None), "mount": (165, 40), "move_mount": (429, 429),
    "mprotect": (10, 226), "mremap": (25, 216), "munmap": (11, 215), "nanosleep": (35, 101),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "prctl": (157, 167),
    "prlimit64": (302, 261), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "reboot": (169, 142), "recvfrom": (45, 207),
    "request_key": (249, 218), "restart_syscall": (219, 128), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "seccomp": (317, 277),
    "sendto": (44, 206), "set_robust_list": (273, 99), "setitimer": (38, 103), "setns": (308, 268),
    "sigaltstack": (131, 132), "sysinfo": (99, 179), "tgkill": (234, 131), "time": (201, None),
    "times": (100, 153), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
    "write": (1, 64), "writev": (20, 66),
}  # fmt: skip
"""Name -> number on x86_64 and on aarch64; None if the architecture does not have the call."""

_ARCHITECTURES = ("x86_64", "aarch64")

FIRST_COMMON = 424
"""From here on, numbers are the same on all architectures, and calls are of Linux 5.1 or later."""


def number(name: str, machine: str) -> int | None:
    """Return the number of the system call `name`, or None if `machine` does not have it.

    Args:
        name: The name in the kernel's tables.
        machine: "x86_64" or "aarch64".
    """
    return _NUMBERS[name][_ARCHITECTURES.index(machine)]
