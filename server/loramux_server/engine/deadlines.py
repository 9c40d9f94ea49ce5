"""Which requests are late. Knows no clock."""

import math
from collections.abc import Collection

from loramux_server.engine.request import Request


class Deadlines:
    """Finds requests whose time is up, and looks at all of them only when one is."""

    def __init__(self) -> None:
        self._first = math.inf
        """No request has to be finished before this."""

    def note(self, request: Request) -> None:
        """Note a request that is not finished."""
        self._first = min(self._first, request.deadline)

    def late(self, requests: Collection[Request], now: float) -> list[Request]:
        """Return those of `requests`, all that are not finished, whose time is up."""
        if now < self._first:
            return []
        late = [request for request in requests if request.deadline <= now]
        deadlines = (request.deadline for request in requests if request.deadline > now)
        self._first = min(deadlines, default=math.inf)
        return late
