"""Limits how many requests may overtake one that waits for its adapter to be loaded.

Once `most` requests that stand behind it have started before it, it has the next turn: its adapter
is loaded first, and no request with another adapter starts from behind it. So leases run out, and
its adapter fits. Requests of better priority stand in front of it and are not counted.
"""

from collections.abc import Sequence

from loramux_server.engine.fair_queue import FairQueue
from loramux_server.engine.request import Request


class Bypass:
    """Counts how often each waiting request was overtaken."""

    def __init__(self, waiting: FairQueue, most: int) -> None:
        """Allow each request of `waiting` to be overtaken `most` times."""
        self._waiting = waiting
        self._most = most
        self._may_be_over = False
        """Whether a waiting request may have reached the limit; if False, none has."""

    def entered(self, request: Request) -> None:
        """Note that `request` was added to the queue, which it may have left before."""
        self._may_be_over = self._may_be_over or self.is_over(request)

    def note(self, passed: Sequence[Request]) -> None:
        """Note that another request started before those that were `passed`."""
        for request in passed:
            request.num_bypassed += 1
            self.entered(request)

    def is_over(self, request: Request) -> bool:
        """Return whether `request` has reached the limit."""
        return request.adapter is not None and request.num_bypassed >= self._most

    def first_over_limit(self) -> str | None:
        """Return the adapter of the first waiting request that reached the limit, if any."""
        if not self._may_be_over:
            return None
        over = next(filter(self.is_over, self._waiting), None)
        self._may_be_over = over is not None
        return over.digest if over else None

    def check(self) -> None:
        """Assert that `first_over_limit` overlooks no request."""
        over = (request.digest for request in self._waiting if self.is_over(request))
        assert next(over, None) == self.first_over_limit(), "a request at its limit is overlooked"
