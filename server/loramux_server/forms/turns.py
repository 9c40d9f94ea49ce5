"""Whose turn it is: texts of several tenants and paces stand in lines that share one process.

A line that comes up is due when the last one was that had its turn, and is due again later by what
its own turn took; the one that is due first goes. So each gets its part of the process, whatever
the turns of others take, and one that comes up waits for little more than the turn that is on: the
start-time fair queueing of Goyal, Vin and Cheng (SIGCOMM 1996).
"""

import enum
from collections import deque
from dataclasses import dataclass


class Pace(enum.IntEnum):
    """How long the next answer about a text is likely to take; between equals the first goes."""

    QUICK = 0
    SLOW = 1
    """Its last one took long."""
    NEW = 2
    """Its form may have to be compiled."""


MOST_AT_ONCE = {Pace.QUICK: 16, Pace.SLOW: 1, Pace.NEW: 1}
"""Texts in a turn. More would save little, and keep others waiting if they turn out to be slow."""


@dataclass(frozen=True, slots=True)
class Line:
    """Texts that share turns."""

    pace: Pace
    tenant: str


class LineTurns:
    """Owns the lines; one in which nobody stands is soon forgotten."""

    def __init__(self) -> None:
        self._keys: dict[Line, deque[int]] = {}
        """Who stands in each; none is empty."""
        self._due: dict[Line, float] = {}
        """When each has its turn, in seconds of turns."""
        self._now = 0.0
        """When the last one was due that had one."""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, line: Line, key: int) -> None:
        """Put `key` at the end of `line`."""
        if line not in self._keys:
            self._keys[line] = deque()
            self._due[line] = max(self._due.get(line, 0.0), self._now)
        self._keys[line].append(key)

    def take(self) -> tuple[Line, list[int]]:
        """Take those who are next out of their line, of which there has to be one."""
        line = min(self._keys, key=lambda line: (self._due[line], line.pace))
        self._now = self._due[line]
        keys = self._keys[line]
        taken = [keys.popleft() for _ in range(min(len(keys), MOST_AT_ONCE[line.pace]))]
        if not keys:
            del self._keys[line]
        return line, taken

    def charge(self, line: Line, seconds: float) -> None:
        """Count what the turn of `line` took that was the last one."""
        self._due[line] += seconds
        # What is due later is kept, or to come and go would be a way to the front.
        self._due = {
            line: due for line, due in self._due.items() if due > self._now or line in self._keys
        }
