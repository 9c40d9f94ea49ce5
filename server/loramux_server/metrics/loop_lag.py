"""The event loop's lag: how much later than scheduled it runs a timer."""

import asyncio
from collections import deque

INTERVAL = 0.25
"""Seconds between measurements."""
NUM_SAMPLES = 3
"""Consecutive late measurements that make a lag; a single pause does not."""


class LoopLag:
    """Measures the lag periodically."""

    def __init__(self) -> None:
        self._late: deque[float] = deque([0.0], maxlen=NUM_SAMPLES)

    @property
    def seconds(self) -> float:
        """The minimum lag of the last measurements."""
        return min(self._late)

    def note(self, seconds: float) -> None:
        """Add a measurement."""
        self._late.append(max(0.0, seconds))

    async def watch(self) -> None:
        """Measure until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            self.note(loop.time() - due)
