"""What keeps an adapter in memory: waiting requests, leases and pins."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from loramux_server.wire.adapter_source import AdapterSource


class Waiter(NamedTuple):
    """What matters of a request that waits for an adapter."""

    tenant: str = ""
    priority: int = 0


@dataclass(slots=True)
class Use:
    """An adapter that requests wait for or use, that is being loaded, or that is pinned."""

    source: AdapterSource
    waiting: Counter[Waiter] = field(default_factory=Counter)
    """The waiting requests; no count is 0."""
    num_leases: int = 0
    is_pinned: bool = False

    @property
    def num_waiting(self) -> int:
        """Number of waiting requests."""
        return self.waiting.total()

    @property
    def is_only_pinned(self) -> bool:
        """Whether it is pinned, and no request waits for it or uses it."""
        return self.is_pinned and not (self.waiting or self.num_leases)

    def best_of_tenants(self) -> dict[str, int]:
        """Return each tenant with a waiting request, and the best priority of its requests."""
        best: dict[str, int] = {}
        for tenant, priority in self.waiting:
            best[tenant] = min(priority, best.get(tenant, priority))
        return best
