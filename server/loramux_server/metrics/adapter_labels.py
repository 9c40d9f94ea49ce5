"""Which adapters have metric series of their own: the busiest ones, and a bounded number."""

from collections import Counter
from collections.abc import Callable

OTHER = "other"
BASE = "base"
NONE = "none"
"""For requests that were refused before it was known what they ask for."""
_RESERVED = {"", OTHER, BASE, NONE}
_HALVE_AFTER = 10_000


class AdapterLabels:
    """Adapter name -> label value. Only names that are registered may be given to it."""

    def __init__(self, limit: int, on_end: Callable[[str], None]) -> None:
        """Allow `limit` names; `on_end` is called with a name whose series must end."""
        self._limit = limit
        self._on_end = on_end
        self._own: set[str] = set()
        self._requests: Counter[str] = Counter()
        self._until_halved = _HALVE_AFTER

    def count(self, name: str) -> None:
        """Note a request for `name`; it gets a series of its own if it is among the busiest.

        An adapter whose name is a label of ours never gets one: it counts as OTHER.
        """
        if name in _RESERVED:
            return
        self._requests[name] += 1
        self._age()
        if name in self._own:
            return
        if len(self._own) >= self._limit:
            idlest = min(self._own, key=self._requests.__getitem__)
            # Twice as busy, or two adapters of equal traffic would replace each other for ever.
            if self._requests[name] < 2 * self._requests[idlest]:
                return
            self._end(idlest)
        self._own.add(name)

    def label(self, name: str) -> str:
        """Return the label value for `name`, or for the base model if it is empty."""
        if not name:
            return BASE
        return name if name in self._own else OTHER

    def forget(self, name: str) -> None:
        """Note that `name` is no longer registered."""
        self._requests.pop(name, None)
        if name in self._own:
            self._end(name)

    def _end(self, name: str) -> None:
        self._own.discard(name)
        self._on_end(name)

    def _age(self) -> None:
        """Halve all counts now and then, so that yesterday's traffic weighs less than today's."""
        self._until_halved -= 1
        if self._until_halved:
            return
        self._until_halved = _HALVE_AFTER
        self._requests = Counter({name: n // 2 for name, n in self._requests.items() if n > 1})
