"""Fair queueing of texts, by tenant and pace, for the one worker process.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Virtual time is when the queue served
last was due. A queue that becomes non-empty is due then, or at its own due time if that is later; a
turn postpones it by what the turn took. The earliest is served first. So each queue gets its share
of the process, whatever the turns of others take, and a newcomer waits for little more than the
turn in progress.
"""

import enum
from collections import deque
from dataclasses import dataclass


class Pace(enum.IntEnum):
    """Expected duration of a text's next answer; among equals the lower value is served first."""

    QUICK = 0
    SLOW = 1
    """The last answer took long."""
    NEW = 2
    """Its form may have to be compiled."""


MOST_AT_ONCE = {Pace.QUICK: 16, Pace.SLOW: 1, Pace.NEW: 1}
"""Texts per turn. More would save little, and delay others if they turn out to be slow."""


@dataclass(frozen=True, slots=True)
class QueueKey:
    """A queue of texts that share turns."""

    pace: Pace
    tenant: str


class TextQueues:
    """Owns the queues; an empty one is forgotten once its due time has passed."""

    def __init__(self) -> None:
        self._keys: dict[QueueKey, deque[int]] = {}
        """Texts waiting in each; none is empty."""
        self._due: dict[QueueKey, float] = {}
        """Virtual time of each queue's next turn, in seconds of service."""
        self._now = 0.0
        """Virtual time: when the last served queue was due."""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, queue: QueueKey, key: int) -> None:
        """Append `key` to `queue`."""
        if queue not in self._keys:
            self._keys[queue] = deque()
            self._due[queue] = max(self._due.get(queue, 0.0), self._now)
        self._keys[queue].append(key)

    def take(self) -> tuple[QueueKey, list[int]]:
        """Remove and return the texts of the next turn, with their queue; one must be waiting."""
        queue = min(self._keys, key=lambda queue: (self._due[queue], queue.pace))
        self._now = self._due[queue]
        keys = self._keys[queue]
        taken = [keys.popleft() for _ in range(min(len(keys), MOST_AT_ONCE[queue.pace]))]
        if not keys:
            del self._keys[queue]
        return queue, taken

    def charge(self, queue: QueueKey, seconds: float) -> None:
        """Add what the last turn, of `queue`, took to its due time."""
        self._due[queue] += seconds
        # Keep due times in the future, or leaving and rejoining would be a way to the front.
        self._due = {
            queue: due for queue, due in self._due.items() if due > self._now or queue in self._keys
        }
