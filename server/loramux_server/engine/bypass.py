"""Who lets others pass because its adapter is not resident, and for how long.

When enough have passed, no request with another adapter starts before it: then leases run out, and
its adapter fits.
"""

from collections.abc import Sequence

from loramux_server.engine.fair_queue import FairQueue
from loramux_server.engine.request import Request


class Bypass:
    """Counts for requests who passed them."""

    def __init__(self, waiting: FairQueue, most: int) -> None:
        """Let each request of `waiting` be passed by `most` others."""
        self._waiting = waiting
        self._most = most

    def note(self, passed: Sequence[Request]) -> None:
        """Take in that another request started before those that were `passed`."""
        for request in passed:
            request.num_bypassed += 1

    def come_back(self, request: Request) -> None:
        """Take in that `request`, which was away, waits again: who passed those behind it did it.

        They came later. Else one of them could wait for ever behind it, whoever passes.
        """
        if not request.has_started:
            passed = (other.num_bypassed for other in self._waiting.behind(request))
            request.num_bypassed = max(request.num_bypassed, *passed, 0)

    def is_over(self, request: Request) -> bool:
        """Return whether no more may pass `request`, for they were enough."""
        return request.adapter is not None and request.num_bypassed >= self._most

    def whose_turn(self) -> str | None:
        """Return the adapter of the first request that let enough others pass, if one did."""
        for line in self._waiting.lines():
            for request in line:
                if self.is_over(request):
                    return request.digest
                if request.adapter and not request.has_started:
                    # Those behind it came later, and nobody passed them who did not pass it.
                    break
        return None

    def check(self) -> None:
        """Assert that `whose_turn` overlooks nobody."""
        enough = (request.digest for request in self._waiting if self.is_over(request))
        assert next(enough, None) == self.whose_turn(), "one was passed more often than before it"
