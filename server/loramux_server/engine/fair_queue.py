"""The queue: in each tenant's line who came first goes first, and the lines share what runs.

Knows nothing of adapters or blocks. A tenant has a counter of what it was served, prompt tokens and
twice the generated ones by its weight, and the line with the smallest goes first: the virtual token
counter of Sheng et al., "Fairness in serving large language models" (OSDI 2024, arXiv:2401.00588).
Who comes back is not paid for the time away: its counter is lifted to the smallest in the queue.
So of two tenants that always wait, none gets ahead by more than a prompt and a full batch.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator

from loramux_server.engine.request import Request

OUTPUT_COST = 2
"""What a generated token counts, where one of a prompt counts 1."""


class FairQueue:
    """Owns the lines and the counters; a tenant that has nothing under way is soon forgotten."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Request]] = {}
        """Tenant -> those who wait; no line is empty."""
        self._served: dict[str, float] = {}
        self._num_live: Counter[str] = Counter()
        """Requests of each tenant, waiting or running."""
        self._level = 0.0
        """What the tenant had that was the last to go."""
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        """Yield those who wait in the order of `lines`."""
        for line in self.lines():
            yield from line

    def __contains__(self, request: Request) -> bool:
        return request in self._lines.get(request.tenant, ())

    def lines(self) -> list[deque[Request]]:
        """Return the lines, which are not to be changed; the tenant with the least comes first."""
        if len(self._lines) == 1:
            return list(self._lines.values())
        return [self._lines[tenant] for tenant in sorted(self._lines, key=self._served.__getitem__)]

    def behind(self, request: Request) -> Iterator[Request]:
        """Yield those who wait behind `request`, which waits as well, in its tenant's line."""
        line = iter(self._lines[request.tenant])
        for other in line:
            if other is request:
                break
        yield from line

    def turns(self) -> Iterator[Request]:
        """Yield those who wait in the order in which they may start.

        Who starts is charged and removed before the next one is asked for; who cannot start yet
        stays, and the one behind it follows.
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
        """Put a request that arrives at the end of its tenant's line; who goes on comes first."""
        self._served[request.tenant] = self._counter(request.tenant)
        self._num_live[request.tenant] += 1
        if request.goes_on:
            self.put_back(request)
            return
        self._lines.setdefault(request.tenant, deque()).append(request)
        self._num_waiting += 1

    def put_back(self, request: Request) -> None:
        """Put a request that was here before at the beginning of its tenant's line."""
        self._lines.setdefault(request.tenant, deque()).appendleft(request)
        self._num_waiting += 1

    def come_back(self, request: Request) -> None:
        """Do the same with one that was away by itself, for which its tenant is not paid.

        One that never started goes where it was: before those that came later.
        """
        self._served[request.tenant] = self._counter(request.tenant)
        if request.has_started:
            self.put_back(request)
            return
        line = self._lines.setdefault(request.tenant, deque())
        later = (i for i, other in enumerate(line) if _came_before(request, other))
        line.insert(next(later, len(line)), request)
        self._num_waiting += 1

    def remove(self, request: Request) -> None:
        """Take a request out that waits."""
        line = self._lines[request.tenant]
        line.remove(request)
        self._num_waiting -= 1
        if not line:
            del self._lines[request.tenant]

    def before(self, tenant: str) -> Iterator[Request]:
        """Yield those who wait and go before a request of `tenant` that would come now.

        Prompts alone are counted: what others will generate meanwhile is not known.
        """
        own = self._lines.get(tenant, ())
        turn = self._counter(tenant) + sum(_prompt_cost(request) for request in own)
        yield from own
        for other, line in self._lines.items():
            served = self._served[other]
            for request in line if other != tenant else ():
                if served >= turn:
                    break
                yield request
                served += _prompt_cost(request)

    def charge_prompt(self, request: Request) -> None:
        """Count what has to be computed for a request that starts."""
        self._level = max(self._level, self._served[request.tenant])
        self._served[request.tenant] += request.num_uncomputed / request.weight

    def charge_output(self, request: Request) -> None:
        """Count a generated token."""
        self._served[request.tenant] += OUTPUT_COST / request.weight

    def ended(self, request: Request) -> None:
        """Note that a request neither waits nor runs any more."""
        self._num_live[request.tenant] -= 1
        if self._num_live[request.tenant]:
            return
        del self._num_live[request.tenant]
        if not self._num_live:
            self._served.clear()
            self._level = 0.0
            return
        # What is above the level is kept, or to come and go would be a way to the front.
        away = [t for t, n in self._served.items() if n <= self._level and t not in self._num_live]
        for tenant in away:
            del self._served[tenant]

    def _counter(self, tenant: str) -> float:
        """Return the counter of `tenant` if it joins the queue now, where it may be already."""
        served = self._served.get(tenant, 0.0)
        if tenant in self._lines:
            return served
        waiting = (self._served[other] for other in self._lines)
        return max(served, min(waiting, default=self._level))


def _came_before(request: Request, other: Request) -> bool:
    if other.has_started:
        return False
    return (request.arrival, request.request_id) < (other.arrival, other.request_id)


def _prompt_cost(request: Request) -> float:
    """Return what a request that waits is charged when it starts, if it shares no blocks."""
    return request.num_uncomputed / request.weight if request.owes_prompt else 0.0
