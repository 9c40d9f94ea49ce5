"""The places of a waiting room in order of arrival, and the order in which their calls start.

It follows the engine's queue: tenants take turns, and priority orders the calls of each tenant.
"""

from collections import Counter
from collections.abc import Iterator

from loramux_server.ranking import ranked
from loramux_server.waiting_room.place import Place


class Places:
    """Counts the waiting completions of each tenant."""

    def __init__(self) -> None:
        """Begin without places."""
        self._places: dict[Place, None] = {}
        self._unstarted: dict[str, Counter[int]] = {}
        """Tenant -> priority -> waiting completions; no count is 0."""
        self._weights: dict[str, int] = {}
        """Tenant with waiting completions -> its fair-share weight."""

    @property
    def has_waiting(self) -> bool:
        """Whether any completion waits."""
        return bool(self._unstarted)

    @property
    def num_waiting(self) -> int:
        """Waiting completions."""
        return sum(counts.total() for counts in self._unstarted.values())

    def add(self, place: Place) -> None:
        """Add a place at which nothing waits yet."""
        self._places[place] = None

    def remove(self, place: Place) -> None:
        """Remove a place, and what waits there."""
        self._places.pop(place, None)
        self.wait(place, -place.num_unstarted)

    def wait(self, place: Place, more: int) -> None:
        """Count `more` waiting completions at `place`; negative numbers count down."""
        counts = self._unstarted.setdefault(place.tenant, Counter())
        counts[place.priority] += more
        self._weights[place.tenant] = place.weight
        if not counts[place.priority]:
            del counts[place.priority]
        if not counts:
            del self._unstarted[place.tenant], self._weights[place.tenant]

    def last_first(self) -> Iterator[Place]:
        """Yield the places in the order of eviction, which is the opposite of their turns."""
        return reversed(ranked(self._places))

    def num_before(self, place: Place) -> float:
        """Return how many waiting completions start before a new one of `place`."""
        return sum(self._before(place).values())

    def num_tokens_before(self, place: Place) -> float:
        """Return the prompt tokens of the completions that start before a new one of `place`."""
        left = self._before(place)
        num_tokens = 0.0
        for other in ranked(self._places):
            if num_starts := min(other.num_unstarted, left.get(other.tenant, 0.0)):
                left[other.tenant] -= num_starts
                num_tokens += num_starts * other.num_prompt
        return num_tokens

    def shares(self) -> dict[str, float]:
        """Return each tenant's waiting completions, divided by its weight."""
        shares: dict[str, float] = {}
        for place in self._places:
            used = place.num_unstarted / place.weight
            shares[place.tenant] = shares.get(place.tenant, 0.0) + used
        return shares

    def _before(self, place: Place) -> dict[str, float]:
        """Return how many of each tenant start before a new one of `place`, by weighted turns.

        Of its own tenant these are the ones of equal or better priority.
        """
        mine = self._unstarted.get(place.tenant, Counter())
        own = sum(count for priority, count in mine.items() if priority <= place.priority)
        turns = (own + 1) / place.weight
        before: dict[str, float] = {
            tenant: min(counts.total(), turns * self._weights[tenant])
            for tenant, counts in self._unstarted.items()
        }
        return before | {place.tenant: own}
