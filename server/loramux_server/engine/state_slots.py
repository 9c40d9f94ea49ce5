"""Slots for what recurrent layers know of requests: who holds which, and which are remembered.

Knows nothing of tensors: a slot is an integer. What is known after the full blocks at a beginning
can be remembered under the name of the last of them, beside the blocks; then a request that begins
with the same tokens goes on from there. It stays until its slot is needed: what was not used for
longest goes first.

Source: SGLang's radix cache for hybrid models, which keeps states beside blocks, where prompts end
and where they part.
"""

from collections import OrderedDict
from collections.abc import Sequence

from loramux_server.kernels.states import BEGINNING


class StateSlots:
    """Hands out slots 1 to `num_slots`; before them is `BEGINNING`, which all may read."""

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be positive, not {num_slots}")
        self._holders = dict.fromkeys(range(BEGINNING + 1, BEGINNING + 1 + num_slots), 0)
        self._free = OrderedDict.fromkeys(self._holders)
        """Slots that nobody holds, in the order in which they are handed out."""
        self._name_of: dict[int, bytes] = {}
        self._slot_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def take(self) -> int | None:
        """Return a slot for somebody who writes it; None if all are held."""
        if not self._free:
            return None
        slot, _ = self._free.popitem(last=False)
        self._forget(slot)
        self._holders[slot] = 1
        return slot

    def num_known(self, names: Sequence[bytes]) -> int:
        """Return after how many of the full blocks at a beginning a state is remembered."""
        for count in range(len(names), 0, -1):
            if names[count - 1] in self._slot_of:
                return count
        return 0

    def hold(self, name: bytes) -> int:
        """Return the slot that is remembered under `name`, which stays until it is released."""
        slot = self._slot_of[name]
        self._free.pop(slot, None)
        self._holders[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back; `BEGINNING` is nobody's."""
        if slot == BEGINNING:
            return
        self._holders[slot] -= 1
        if not self._holders[slot]:
            self._free[slot] = None
            if slot not in self._name_of:
                self._free.move_to_end(slot, last=False)

    def name(self, slot: int, name: bytes) -> None:
        """Remember a slot, once it is released; the first one of a name keeps it."""
        if name not in self._slot_of:
            self._forget(slot)
            self._slot_of[name] = slot
            self._name_of[slot] = name

    def forget(self, name: bytes) -> None:
        """Remember no longer what is known under `name`, if anything is."""
        slot = self._slot_of.get(name)
        if slot is None:
            return
        self._forget(slot)
        if slot in self._free:
            self._free.move_to_end(slot, last=False)

    def check(self, held: Sequence[int]) -> None:
        """Assert that every slot is free or held as often as in `held`."""
        holders = dict.fromkeys(self._holders, 0)
        for slot in held:
            if slot != BEGINNING:
                holders[slot] += 1
        assert holders == self._holders, "slots leaked"
        assert {slot for slot, count in holders.items() if not count} == self._free.keys()
        assert {name: slot for slot, name in self._name_of.items()} == self._slot_of

    def _forget(self, slot: int) -> None:
        if name := self._name_of.pop(slot, None):
            del self._slot_of[name]
