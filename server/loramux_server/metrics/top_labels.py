"""Bounds the cardinality of labels: only the busiest names get series of their own."""

from collections import Counter
from collections.abc import Callable

OTHER = "other"
BASE = "base"
NONE = "none"
"""For requests that were refused before their adapter was known."""
_RESERVED = {"", OTHER, BASE, NONE}
_HALVE_AFTER = 10_000


class TopLabels:
    """Name of an adapter or tenant -> label value. Must only be given registered names."""

    def __init__(self, limit: int, on_end: Callable[[str], None]) -> None:
        """Allow `limit` names; `on_end` is called with a name whose series must be removed."""
        self._limit = limit
        self._on_end = on_end
        self._own: set[str] = set()
        self._requests: Counter[str] = Counter()
        self._until_halved = _HALVE_AFTER

    def count(self, name: str) -> None:
        """Count a request for `name`, which gets a series of its own if it is among the busiest.

        An adapter whose name equals a reserved label never gets one: it counts as OTHER.
        """
        if name in _RESERVED:
            return
        self._requests[name] += 1
        self._age()
        if name in self._own:
            return
        if len(self._own) >= self._limit:
            idlest = min(self._own, key=self._requests.__getitem__)
            # Hysteresis: otherwise two adapters of equal traffic would keep replacing each other.
            if self._requests[name] < 2 * self._requests[idlest]:
                return
            self._end(idlest)
        self._own.add(name)

    def label(self, name: str) -> str:
        """Return the label value for `name`; empty stands for the base model."""
        if not name:
            return BASE
        return name if name in self._own else OTHER

    def forget(self, name: str) -> None:
        """Forget `name`, which is no longer registered."""
        self._requests.pop(name, None)
        if name in self._own:
            self._end(name)

    def _end(self, name: str) -> None:
        self._own.discard(name)
        self._on_end(name)

    def _age(self) -> None:
        """Halve all counts every `_HALVE_AFTER` requests, so that recent traffic weighs more."""
        self._until_halved -= 1
        if self._until_halved:
            return
        self._until_halved = _HALVE_AFTER
        self._requests = Counter({name: n // 2 for name, n in self._requests.items() if n > 1})
