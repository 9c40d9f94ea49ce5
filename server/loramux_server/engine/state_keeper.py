"""Recurrent states of requests: which slots are read and written, and which states are cached.

Knows nothing of tensors. The state after a full block is kept in a slot of its own, under the name
of the block: at the end of a prompt, where a prompt diverges from cached blocks, and periodically
in an output. A request with the same prefix continues from it. It stays until its slot is needed:
the least recently used goes first.

Source: SGLang's radix cache for hybrid models, which keeps states beside blocks, where prompts end
and where they diverge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.engine.named_pool import NamedPool
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.kernels.states import BEGINNING

_APART = 64
"""Minimum distance in tokens between the states kept of an output; only the last one stays."""


@dataclass(frozen=True, slots=True)
class StateUse:
    """The slots that a chunk uses."""

    read: int
    write: int
    kept: tuple[tuple[int, int], ...] = ()
    """(Position after which a state is kept, its slot), in order."""


class StateKeeper:
    """Assigns slots 1 to `num_slots`; slot `BEGINNING` is the initial state, which all may read."""

    def __init__(self, num_slots: int, block_size: int, *, keeps: bool) -> None:
        """Begin without requests.

        Args:
            num_slots: Slots for requests, and for states that are kept.
            block_size: Tokens of a KV block.
            keeps: Whether states can be kept, and requests can continue from them.
        """
        if num_slots < 1:
            raise ValueError(f"num_slots must be positive, got {num_slots}")
        self._slots = NamedPool(range(BEGINNING + 1, BEGINNING + 1 + num_slots))
        self._block_size = block_size
        self._keeps = keeps
        self._apart = -(-_APART // block_size) * block_size
        self._under_way: list[int] = []
        """Slots of the states that steps in flight are to keep."""

    @property
    def num_used(self) -> int:
        """Slots that requests and steps hold."""
        return self._slots.num_used

    @property
    def can_begin(self) -> bool:
        """Whether a slot is free for `begin`."""
        return self._slots.num_free > 0

    def num_known(self, names: Sequence[bytes]) -> int:
        """Return after how many of the blocks `names`, which are all cached, a state is kept."""
        for count in range(len(names) if self._keeps else 0, 0, -1):
            if self._slots.find(names[count - 1]) is not None:
                return count
        return 0

    def begin(self, request: Request, last: bytes | None, num_blocks: int) -> None:
        """Give `request` a slot; see `can_begin`.

        Args:
            request: A request without a slot.
            last: Name of the cached block after which it continues; None if it starts afresh.
            num_blocks: How many of its blocks were cached.
        """
        request.slots.read = BEGINNING
        if last is not None:  # held first, so that it is not evicted by `take`
            kept = self._slots.find(last)
            assert kept is not None, "no state is kept after that block"
            self._slots.hold(kept)
            request.slots.read = kept
        if self._slots.num_free:
            request.slots.own = self._slots.take()
        else:  # the slot that it reads becomes its own
            assert last is not None, "begin without can_begin"
            self._slots.forget(last)
            request.slots.own = request.slots.read
        request.slots.keep_at = num_blocks * self._block_size

    def use(self, request: Request, start: int, end: int, *, is_ahead: bool) -> StateUse:
        """Return the slots for tokens `start` to `end` of `request`.

        Args:
            request: A request that has begun.
            start: First position.
            end: Position after the last.
            is_ahead: Whether they follow those of a step in flight.
        """
        kept: list[tuple[int, int]] = []
        for position in self._kept_positions(request, start, end):
            # Recurrent layers yield no intermediate state after a single token.
            is_apart = position - (kept[-1][0] if kept else start) > 1
            if position != end and not is_apart:
                continue
            if not self._slots.num_free:
                break
            slot = self._slots.take()
            kept.append((position, slot))
            self._under_way.append(slot)
        read = request.slots.own if is_ahead else request.slots.read
        return StateUse(read, request.slots.own, tuple(kept))

    def commit(self, request: Request, use: StateUse, *, is_running: bool) -> None:
        """Record that a chunk of `request`, which may have ended meanwhile, was computed."""
        for position, slot in use.kept:
            if is_running:
                name = name_blocks(request, self._block_size, position)[-1]
                self._slots.name(slot, name)
                if position > len(request.prompt):
                    self._replace(request, name)
            self._under_way.remove(slot)
            self._slots.release(slot)
        if is_running:
            self._stop_reading(request)
            request.slots.read = request.slots.own

    def end(self, request: Request) -> None:
        """Release the slots of `request`."""
        self._stop_reading(request)
        self._slots.release(request.slots.own)
        request.slots.read = request.slots.own = BEGINNING
        request.slots.kept_name = None

    def check(self, running: Sequence[Request]) -> None:
        """Assert that slots are held by running requests and steps only."""
        own = [request.slots.own for request in running]
        read = [r.slots.read for r in running if r.slots.read not in (BEGINNING, r.slots.own)]
        assert BEGINNING not in own, "a running request has no slot"
        self._slots.check([*own, *read, *self._under_way])

    def _stop_reading(self, request: Request) -> None:
        """Release the slot that `request` reads, unless it is its own or `BEGINNING`."""
        if request.slots.read not in (BEGINNING, request.slots.own):
            self._slots.release(request.slots.read)

    def _kept_positions(self, request: Request, start: int, end: int) -> list[int]:
        """Return the positions after which to keep a state, in order."""
        if not self._keeps:
            return []
        prompt, size = len(request.prompt), self._block_size
        wanted = {(prompt - 1) // size * size, request.slots.keep_at}
        if end > prompt and end % self._apart == 0:
            wanted.add(end)
        return sorted(position for position in wanted if start < position <= end)

    def _replace(self, request: Request, name: bytes) -> None:
        """Make `name` the only state that is kept of the output of `request`."""
        if request.slots.kept_name:
            self._slots.forget(request.slots.kept_name)
        request.slots.kept_name = name
