"""The waiting requests: one line per tenant, and fair turns between the lines.

Within a line, requests are ordered by priority (lower first), and those of equal priority by
arrival. Between tenants, priority does not count. Each tenant has a counter of the service it
received: prompt tokens plus twice the generated tokens, divided by its weight. The line of the
tenant with the smallest counter goes first. This is the virtual token counter of Sheng et al.,
"Fairness in serving large language models" (OSDI 2024, arXiv:2401.00588). The counter of a tenant
that comes back after having had no requests is raised to the smallest one in the queue, so that it
gets no credit for its absence. Of two tenants that always have requests waiting, neither gets ahead
by more than one prompt and one full batch.

Knows nothing of adapters or blocks.
"""

import heapq
from bisect import bisect_left, bisect_right, insort_left, insort_right
from collections import Counter
from collections.abc import Iterator, Sequence

from loramux_server.engine.request import Request

OUTPUT_COST = 2
"""Cost of a generated token; a prompt token costs 1."""


class FairQueue:
    """Owns the lines and the counters; forgets a tenant soon after its last request ended."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Request]] = {}
        """Tenant -> its waiting requests, sorted by priority; no line is empty."""
        self._served: dict[str, float] = {}
        self._num_live: Counter[str] = Counter()
        """Requests of each tenant that are waiting, running or paused."""
        self._level = 0.0
        """Highest counter with which a tenant had a request started."""
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        """Yield the waiting requests, line by line in the order of `lines`."""
        for line in self.lines():
            yield from line

    def __contains__(self, request: Request) -> bool:
        return request in self._lines.get(request.tenant, ())

    def lines(self) -> list[Sequence[Request]]:
        """Return the lines, that of the tenant with the smallest counter first."""
        if len(self._lines) == 1:
            return list(self._lines.values())
        return [self._lines[tenant] for tenant in sorted(self._lines, key=self._served.__getitem__)]

    def in_order(self) -> Iterator[Request]:
        """Yield the waiting requests in the order in which they may start.

        The caller charges and removes a request that starts before it asks for the next one. A
        request that cannot start yet stays in its line, and the one behind it is yielded.
        """
        heap = [(self._served[tenant], i, tenant) for i, tenant in enumerate(self._lines)]
        heapq.heapify(heap)
        walks: dict[str, Iterator[Request]] = {}
        while heap:
            _, i, tenant = heap[0]
            if tenant not in walks:
                walks[tenant] = iter(tuple(self._lines[tenant]))
            request = next(walks[tenant], None)
            if request is None:
                heapq.heappop(heap)
                continue
            yield request
            heapq.heapreplace(heap, (self._served[tenant], i, tenant))

    def append(self, request: Request) -> None:
        """Add a request that arrives, behind those of equal priority.

        A request that goes on with a completion is added before them.
        """
        self._served[request.tenant] = self._counter(request.tenant)
        self._num_live[request.tenant] += 1
        if request.goes_on:
            self.put_back(request)
            return
        insort_right(self._lines.setdefault(request.tenant, []), request, key=_priority)
        self._num_waiting += 1

    def put_back(self, request: Request) -> None:
        """Add a request that has run before, ahead of those of equal priority."""
        insort_left(self._lines.setdefault(request.tenant, []), request, key=_priority)
        self._num_waiting += 1

    def come_back(self, request: Request) -> None:
        """Add a request that was paused, for which its tenant gets no credit.

        If it has run before, it goes ahead of those of equal priority; otherwise it gets back its
        place among them by arrival.
        """
        self._served[request.tenant] = self._counter(request.tenant)
        if request.has_started:
            self.put_back(request)
            return
        line = self._lines.setdefault(request.tenant, [])
        end = bisect_right(line, request.priority, key=_priority)
        equals = range(bisect_left(line, request.priority, key=_priority), end)
        later = (i for i in equals if _precedes(request, line[i]))
        line.insert(next(later, end), request)
        self._num_waiting += 1

    def remove(self, request: Request) -> None:
        """Remove a waiting request."""
        line = self._lines[request.tenant]
        line.remove(request)
        self._num_waiting -= 1
        if not line:
            del self._lines[request.tenant]

    def before(self, request: Request) -> Iterator[Request]:
        """Yield the waiting requests that would start before `request` if it arrived now.

        Of its own tenant these are the ones of equal or better priority. Of other tenants it is
        estimated from prompts alone: how many tokens will be generated meanwhile is unknown.
        """
        line = self._lines.get(request.tenant, [])
        own = line[: bisect_right(line, request.priority, key=_priority)]
        turn = self._counter(request.tenant) + sum(_prompt_cost(each) for each in own)
        yield from own
        for tenant, others in self._lines.items():
            served = self._served[tenant]
            for other in others if tenant != request.tenant else ():
                if served >= turn:
                    break
                yield other
                served += _prompt_cost(other)

    def charge_prompt(self, request: Request) -> None:
        """Charge the tenant of a request that starts for the tokens to be computed."""
        self._level = max(self._level, self._served[request.tenant])
        self._served[request.tenant] += request.num_uncomputed / request.weight

    def charge_output(self, request: Request) -> None:
        """Charge the tenant of `request` for a generated token."""
        self._served[request.tenant] += OUTPUT_COST / request.weight

    def ended(self, request: Request) -> None:
        """Note that a request is neither waiting nor running any more."""
        self._num_live[request.tenant] -= 1
        if self._num_live[request.tenant]:
            return
        del self._num_live[request.tenant]
        if not self._num_live:
            self._served.clear()
            self._level = 0.0
            return
        # A counter above the level is kept: otherwise a tenant could reset it by leaving briefly.
        away = [t for t, n in self._served.items() if n <= self._level and t not in self._num_live]
        for tenant in away:
            del self._served[tenant]

    def check(self) -> None:
        """Assert that every line is sorted by priority, and that the count is right."""
        assert all(self._lines.values()), "a line is empty"
        assert self._num_waiting == sum(map(len, self._lines.values())), "requests are miscounted"
        for line in self._lines.values():
            assert line == sorted(line, key=_priority), "a line is not sorted by priority"

    def _counter(self, tenant: str) -> float:
        """Return the counter of `tenant`, raised if it joins the queue now."""
        served = self._served.get(tenant, 0.0)
        if tenant in self._lines:
            return served
        waiting = (self._served[other] for other in self._lines)
        return max(served, min(waiting, default=self._level))


def _priority(request: Request) -> int:
    return request.priority


def _precedes(request: Request, other: Request) -> bool:
    if other.has_started:
        return False
    return (request.arrival, request.request_id) < (other.arrival, other.request_id)


def _prompt_cost(request: Request) -> float:
    """Return the charge of a waiting request when it starts, if it shares no blocks."""
    return request.num_uncomputed / request.weight if request.owes_prompt else 0.0
