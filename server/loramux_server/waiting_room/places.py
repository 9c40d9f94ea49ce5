"""The places of a waiting room in order of arrival, and the order in which tenants start."""

from collections import Counter
from collections.abc import Iterator

from loramux_server.waiting_room.place import Place


class Places:
    """Counts the waiting completions of each tenant."""

    def __init__(self) -> None:
        """Begin without places."""
        self._places: dict[Place, None] = {}
        self._unstarted: Counter[str] = Counter()
        """Tenant -> waiting completions."""
        self._weights: dict[str, int] = {}
        """Tenant with waiting completions -> its fair-share weight."""

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __reversed__(self) -> Iterator[Place]:
        return reversed(self._places)

    @property
    def has_waiting(self) -> bool:
        """Whether any completion waits."""
        return bool(self._unstarted)

    @property
    def num_waiting(self) -> int:
        """Waiting completions."""
        return self._unstarted.total()

    def add(self, place: Place) -> None:
        """Add a place at which nothing waits yet."""
        self._places[place] = None

    def remove(self, place: Place) -> None:
        """Remove a place, and what waits there."""
        self._places.pop(place, None)
        self.wait(place, -place.num_unstarted)

    def wait(self, place: Place, more: int) -> None:
        """Count `more` waiting completions at `place`; negative numbers count down."""
        self._unstarted[place.tenant] += more
        self._weights[place.tenant] = place.weight
        if not self._unstarted[place.tenant]:
            del self._unstarted[place.tenant], self._weights[place.tenant]

    def num_before(self, place: Place) -> float:
        """Return how many waiting completions start before a new one of `place`."""
        return sum(self._before(place).values())

    def num_tokens_before(self, place: Place) -> float:
        """Return the prompt tokens of the completions that start before a new one of `place`."""
        left = self._before(place)
        num_tokens = 0.0
        for other in self._places:
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
        """Return how many of each tenant start before a new one of `place`, by weighted turns."""
        own = self._unstarted[place.tenant]
        turns = (own + 1) / place.weight
        return {
            tenant: own if tenant == place.tenant else min(count, turns * self._weights[tenant])
            for tenant, count in self._unstarted.items()
        }
