"""What a load does after each piece of its work, so that a step never waits for it long."""

import os


def give_way() -> None:
    """Let whoever waits for this core have it; nothing happens if nobody does.

    A thread keeps a core for milliseconds once it has it, which is as long as several layers take.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()
