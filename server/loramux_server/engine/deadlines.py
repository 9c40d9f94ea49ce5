"""Which requests are past their deadline. Reads no clock."""

import math
from collections.abc import Collection

from loramux_server.engine.request import Request


class Deadlines:
    """Finds requests past their deadline, and scans them only when there may be one."""

    def __init__(self) -> None:
        self._first = math.inf
        """Lower bound of all deadlines."""

    def note(self, request: Request) -> None:
        """Record an unfinished request."""
        self._first = min(self._first, request.deadline)

    def late(self, requests: Collection[Request], now: float) -> list[Request]:
        """Return which of `requests`, which are all unfinished ones, are past their deadline."""
        if now < self._first:
            return []
        late = [request for request in requests if request.deadline <= now]
        deadlines = (request.deadline for request in requests if request.deadline > now)
        self._first = min(deadlines, default=math.inf)
        return late
