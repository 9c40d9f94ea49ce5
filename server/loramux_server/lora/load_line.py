"""The order in which adapters are loaded that requests wait for."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from operator import itemgetter

from loramux_server.lora.use import Use, Waiter


class LoadLine:
    """Digests of adapters that requests wait for and the device lacks, first come, first served.

    If a tenant waits for several of them with different priorities, these take the positions that
    the tenant has in the line in order of priority. They move no adapter to a later position that a
    tenant without such differences waits for, even if both tenants wait for it.
    """

    def __init__(self, uses: Mapping[str, Use]) -> None:
        """Begin with an empty line; `uses` has the waiting requests of each adapter in it."""
        self._uses = uses
        self._line: OrderedDict[str, None] = OrderedDict()
        self._priorities: Counter[int] = Counter()
        """Priorities of all waiting requests; no count is 0."""

    def __contains__(self, digest: str) -> bool:
        return digest in self._line

    def __iter__(self) -> Iterator[str]:
        return iter(self._line)

    def count(self, waiter: Waiter, more: int) -> None:
        """Note that `more` requests such as `waiter` wait, or fewer if it is negative."""
        self._priorities[waiter.priority] += more
        if not self._priorities[waiter.priority]:
            del self._priorities[waiter.priority]

    def add(self, digest: str) -> None:
        """Add an adapter to the end, unless it is in line already."""
        self._line.setdefault(digest)

    def put_first(self, digest: str) -> None:
        """Put an adapter at the beginning."""
        self._line[digest] = None
        self._line.move_to_end(digest, last=False)

    def discard(self, digest: str) -> None:
        """Remove an adapter, if it is in line."""
        self._line.pop(digest, None)

    def in_order(self, urgent: str | None) -> list[str]:
        """Return the adapters in the order in which they are to be loaded.

        Args:
            urgent: An adapter that comes first if it is in line.
        """
        if urgent is not None and urgent in self._line:
            self.put_first(urgent)
        if len(self._priorities) < 2:
            return list(self._line)
        return sorted(self._by_priority(), key=lambda digest: digest != urgent)

    def check(self) -> None:
        """Assert that the line has the adapters of `uses` only, and that priorities are counted."""
        assert self._line.keys() <= self._uses.keys(), "no request waits for an adapter in line"
        priorities: Counter[int] = Counter()
        for use in self._uses.values():
            for waiter, count in use.waiting.items():
                priorities[waiter.priority] += count
        assert priorities == self._priorities, "priorities are miscounted"

    def _by_priority(self) -> Iterator[str]:
        """Yield the adapters in line in the order of `in_order`, without an urgent one."""
        tenants = {digest: self._uses[digest].best_of_tenants() for digest in self._line}
        waits: dict[str, list[tuple[int, str]]] = {}
        for digest, priorities in tenants.items():
            for tenant, priority in priorities.items():
                waits.setdefault(tenant, []).append((priority, digest))
        lines = {
            tenant: deque(digest for _, digest in sorted(wait, key=itemgetter(0)))
            for tenant, wait in waits.items()
        }
        left = dict.fromkeys(self._line)
        for digest, priorities in tenants.items():
            firsts = [first for tenant in priorities if (first := _first(lines[tenant], left))]
            # Only one takes the position; if a tenant's next one is already there, it stays.
            chosen = digest if digest in firsts else next(iter(firsts), None)
            if chosen is not None:
                del left[chosen]
                yield chosen
        yield from left


def _first(line: deque[str], left: Mapping[str, None]) -> str | None:
    """Return the first of `line` that is `left`, and remove those before it."""
    while line and line[0] not in left:
        line.popleft()
    return line[0] if line else None
