"""The memory and cores that this process may use: the machine's, or less in a container.

psutil and the operating system know the machine and the CPU affinity. Memory and CPU limits are
set in control groups: the process's own or any ancestor.
"""

import os

import proclimits
import psutil


def free_memory() -> int:
    """Return the bytes that this process may still allocate; reclaimable file cache is free."""
    free = int(psutil.virtual_memory().available)
    budget = proclimits.get_memory_budget()
    return free if budget is None else min(free, budget.available)


def all_memory() -> int:
    """Return the total memory that this process and those beside it may use, in bytes."""
    total = int(psutil.virtual_memory().total)
    budget = proclimits.get_memory_budget()
    return total if budget is None else min(total, budget.limit)


def num_cores() -> int:
    """Return how many threads can compute all the time, which may be few in a container.

    A limit of 2.5 cores gives 2: with a third thread, all of them would be throttled.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = proclimits.get_cpu_limit()
    return cores if limit is None else max(1, min(cores, int(limit)))
