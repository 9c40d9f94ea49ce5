"""Loads yield the CPU after each piece of work, so that a step never waits for them long."""

import os


def yield_cpu() -> None:
    """Yield this core to another runnable thread, if there is one.

    Otherwise a thread keeps its core for milliseconds, as long as several layers take.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()
