"""What a request's recurrent layers know: where it is read and written, and what of it is kept.

Knows nothing of tensors. Where a prompt ends, where it parts from what others had before, and now
and then in an output, what is known after a full block is kept beside the request's own slot, under
the name of the block; a request that begins with the same tokens goes on from there. It stays until
its slot is needed: what was not used for longest goes first.

Source: SGLang's radix cache for hybrid models, which keeps states beside blocks, where prompts end
and where they part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.engine.named_pool import NamedPool
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.kernels.states import BEGINNING

_APART = 64
"""Tokens of an output between states that are kept, at least; only the last one is."""


@dataclass(frozen=True, slots=True)
class StateUse:
    """The slots of a chunk."""

    read: int
    write: int
    kept: tuple[tuple[int, int], ...] = ()
    """Position up to which a state is kept, and its slot, in order."""


class StateKeeper:
    """Gives requests their slots: 1 to `num_slots`, since all may read `BEGINNING` before them."""

    def __init__(self, num_slots: int, block_size: int, *, keeps: bool) -> None:
        """Begin without requests.

        Args:
            num_slots: Slots of requests, and of what is kept beside them.
            block_size: Tokens of a KV block.
            keeps: Whether states can be kept, and requests go on from them.
        """
        if num_slots < 1:
            raise ValueError(f"num_slots must be positive, not {num_slots}")
        self._slots = NamedPool(range(BEGINNING + 1, BEGINNING + 1 + num_slots))
        self._block_size = block_size
        self._keeps = keeps
        self._apart = -(-_APART // block_size) * block_size
        self._under_way: list[int] = []
        """Slots of what the steps that run keep."""

    @property
    def num_used(self) -> int:
        """Slots that requests and steps hold."""
        return self._slots.num_used

    @property
    def can_begin(self) -> bool:
        """Whether `begin` has the slot that it needs."""
        return self._slots.num_free > 0

    def num_known(self, names: Sequence[bytes]) -> int:
        """Return after how many of the full blocks of `names`, all there, a state is kept."""
        for count in range(len(names) if self._keeps else 0, 0, -1):
            if self._slots.find(names[count - 1]) is not None:
                return count
        return 0

    def begin(self, request: Request, last: bytes | None, num_blocks: int) -> None:
        """Give `request` a slot; see `can_begin`.

        Args:
            request: It has none.
            last: Name of the full block after which it goes on; None from its first token on.
            num_blocks: How many of its blocks were there.
        """
        request.slots.read = BEGINNING
        if last is not None:  # held first, so that its room is not what is taken
            kept = self._slots.find(last)
            assert kept is not None, "nothing is kept after that block"
            self._slots.hold(kept)
            request.slots.read = kept
        if self._slots.num_free:
            request.slots.own = self._slots.take()
        else:  # the last one becomes its own
            assert last is not None, "begin without can_begin"
            self._slots.forget(last)
            request.slots.own = request.slots.read
        request.slots.keep_at = num_blocks * self._block_size

    def use(self, request: Request, start: int, end: int, *, is_ahead: bool) -> StateUse:
        """Return the slots for tokens `start` to `end` of `request`.

        Args:
            request: It has begun.
            start: First position.
            end: Position after the last.
            is_ahead: Whether they follow on a step that still runs.
        """
        kept: list[tuple[int, int]] = []
        for position in self._wanted(request, start, end):
            # Recurrent layers do not tell a single token apart on the way.
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
        """Take in that a chunk of `request` was computed, which may have ended meanwhile."""
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
        """Take back what `request` has."""
        self._stop_reading(request)
        self._slots.release(request.slots.own)
        request.slots.read = request.slots.own = BEGINNING
        request.slots.kept_name = None

    def check(self, running: Sequence[Request]) -> None:
        """Assert that slots are held by running requests and steps only."""
        own = [request.slots.own for request in running]
        read = [r.slots.read for r in running if r.slots.read not in (BEGINNING, r.slots.own)]
        assert BEGINNING not in own, "one that runs has no slot"
        self._slots.check([*own, *read, *self._under_way])

    def _stop_reading(self, request: Request) -> None:
        """Give back the slot that `request` reads, unless that is its own or nobody's."""
        if request.slots.read not in (BEGINNING, request.slots.own):
            self._slots.release(request.slots.read)

    def _wanted(self, request: Request, start: int, end: int) -> list[int]:
        """Return the positions after which a state is to be kept, in order."""
        if not self._keeps:
            return []
        prompt, size = len(request.prompt), self._block_size
        wanted = {(prompt - 1) // size * size, request.slots.keep_at}
        if end > prompt and end % self._apart == 0:
            wanted.add(end)
        return sorted(position for position in wanted if start < position <= end)

    def _replace(self, request: Request, name: bytes) -> None:
        """Let `name` be the one state that is kept of the output of `request`."""
        if request.slots.kept_name:
            self._slots.forget(request.slots.kept_name)
        request.slots.kept_name = name
