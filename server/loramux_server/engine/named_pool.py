"""A pool of numbered slots that can be found by name after their last holder released them.

Knows nothing of what a slot contains. A named slot can be found and held again until no other is
free; then the least recently released is reused first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import islice


class NamedPool:
    """Hands out each of `numbers` to a holder, and lets others share it by name."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._holders = dict.fromkeys(numbers, 0)
        self._free = OrderedDict.fromkeys(self._holders)
        """Numbers without a holder, in the order in which they are handed out: nameless first."""
        self._name_of: dict[int, bytes] = {}
        self._number_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Numbers without a holder."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Numbers with a holder."""
        return len(self._holders) - len(self._free)

    def has_nameless(self, count: int) -> bool:
        """Return whether the next `count` numbers can be taken without forgetting a name."""
        if count > len(self._free):
            return False
        return not any(number in self._name_of for number in islice(self._free, count))

    def is_free(self, number: int) -> bool:
        """Return whether `number` has no holder."""
        return number in self._free

    def take(self) -> int:
        """Return a number with one holder and no name; at least one must be free."""
        number, _ = self._free.popitem(last=False)
        self._forget(number)
        self._holders[number] = 1
        return number

    def hold(self, number: int) -> None:
        """Add a holder to a number that was found."""
        self._free.pop(number, None)
        self._holders[number] += 1

    def release(self, number: int) -> None:
        """Remove a holder of a number."""
        self._holders[number] -= 1
        if not self._holders[number]:
            self._free[number] = None
            if number not in self._name_of:
                self._free.move_to_end(number, last=False)

    def name(self, number: int, name: bytes) -> None:
        """Make a number that is held findable by `name`; the first one of a name keeps it."""
        if name not in self._number_of:
            self._forget(number)
            self._number_of[name] = number
            self._name_of[number] = name

    def find(self, name: bytes) -> int | None:
        """Return the number of `name`, or None."""
        return self._number_of.get(name)

    def forget(self, name: bytes) -> None:
        """Remove `name`, if it exists."""
        number = self._number_of.get(name)
        if number is None:
            return
        self._forget(number)
        if number in self._free:
            self._free.move_to_end(number, last=False)

    def check(self, held: Iterable[int]) -> None:
        """Assert that every number is free or held as often as it is in `held`."""
        assert Counter(held) == Counter(self._holders), "numbers leaked"
        free = {number for number, count in self._holders.items() if not count}
        assert free == self._free.keys(), "numbers leaked or are free and held"
        assert {name: number for number, name in self._name_of.items()} == self._number_of

    def _forget(self, number: int) -> None:
        if name := self._name_of.pop(number, None):
            del self._number_of[name]
