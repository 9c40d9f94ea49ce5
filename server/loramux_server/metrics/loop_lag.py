"""How late the event loop is: what it should do at a moment, and does later."""

import asyncio
from collections import deque

INTERVAL = 0.25
"""Seconds between looks."""
NUM_LOOKS = 3
"""So many looks in a row make a lag; a single pause is none."""


class LoopLag:
    """Looks again and again."""

    def __init__(self) -> None:
        self._late: deque[float] = deque([0.0], maxlen=NUM_LOOKS)

    @property
    def seconds(self) -> float:
        """By how much each of the last looks was late, at least."""
        return min(self._late)

    def note(self, seconds: float) -> None:
        """Take in by how much a look was late."""
        self._late.append(max(0.0, seconds))

    async def watch(self) -> None:
        """Look until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self.note(loop.time() - due)
