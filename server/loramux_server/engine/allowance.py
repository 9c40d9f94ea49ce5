"""What this process may use: the machine's memory and cores, or what limits of a container leave.

psutil and the scheduler know the machine, and which cores a process is bound to. Limits of memory
and of processor time lie in control groups, that of the process or any above it.
"""

import os

import proclimits
import psutil


def free_memory() -> int:
    """Return the bytes that this process may still take; file cache that can be dropped is free."""
    free = int(psutil.virtual_memory().available)
    budget = proclimits.get_memory_budget()
    return free if budget is None else min(free, budget.available)


def all_memory() -> int:
    """Return the bytes that this process may share with all that runs beside it."""
    total = int(psutil.virtual_memory().total)
    budget = proclimits.get_memory_budget()
    return total if budget is None else min(total, budget.limit)


def num_cores() -> int:
    """Return how many threads may compute all the time, which in a container can be few.

    Of a limit such as 2.5 cores that is 2: a third thread would have all of them stopped in turn.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = proclimits.get_cpu_limit()
    return cores if limit is None else max(1, min(cores, int(limit)))
