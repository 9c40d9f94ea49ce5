"""Cached state of requests: KV blocks, and the state slots of recurrent layers.

Requests of one tenant and adapter share the blocks of a common prefix (`prefix.py`). In a model
with recurrent layers, a prefix is shared up to a block after which the state is cached as well.
Knows nothing of tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loramux_server.engine.block_manager import BlockManager
from loramux_server.engine.plan import Chunk
from loramux_server.engine.prefix import name_blocks
from loramux_server.engine.request import Request
from loramux_server.engine.state_keeper import StateKeeper
from loramux_server.kernels.encoder_text import Seq2SeqState


@dataclass(frozen=True, slots=True)
class Known:
    """The cached prefix of a request, in full blocks."""

    names: Sequence[bytes]
    blocks: Sequence[int]
    num_there: int
    """Cached blocks of its prefix, including those after which no state is cached."""


class Contexts:
    """Allocates and frees the blocks and state slots of requests."""

    def __init__(
        self,
        blocks: BlockManager,
        states: StateKeeper | None = None,
        *,
        shares_prefixes: bool = True,
    ) -> None:
        """Begin without requests.

        Args:
            blocks: The allocator of KV blocks.
            states: The allocator of state slots; None if the model has no recurrent layers.
            shares_prefixes: Whether prefix caching is enabled.
        """
        self.block_size = blocks.block_size
        self._blocks = blocks
        self._states = states
        self._shares_prefixes = shares_prefixes

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that requests hold."""
        return self._blocks.num_used

    @property
    def num_used_states(self) -> int:
        """States of recurrent layers that requests and steps hold."""
        return self._states.num_used if self._states else 0

    def can_go_back(self, chunk: Chunk) -> bool:
        """Return whether the last token of `chunk`, which has run, can be computed again."""
        if self._states:  # there is no state before the last token
            return False
        # A text that is encoded as a whole keeps what it had before the step.
        return not chunk.request.in_one_chunk or chunk.num_tokens == 1

    def known(self, request: Request) -> Known:
        """Return the cached prefix of a request that does not run."""
        names = self._shareable(request)
        blocks = self._blocks.known(names)
        size = num_there = len(blocks)
        if self._states:
            size = self._states.num_known(names[:num_there])
        return Known(names[:size], blocks[:size], num_there)

    def expected(self, request: Request) -> Sequence[bytes]:
        """Return the names of its blocks that may be cached by the time it starts."""
        return self.known(request).names if self._states else self._shareable(request)

    def is_known(self, name: bytes) -> bool:
        """Return whether a block of that name is cached."""
        return self._blocks.is_known(name)

    def can_begin(self, request: Request, known: Known) -> bool:
        """Return whether there is enough memory for `begin`."""
        has_state = self._states is None or self._states.can_begin
        return has_state and self._blocks.can_begin(known.blocks, request.num_tokens)

    def begin(self, request: Request, known: Known) -> None:
        """Allocate memory for all tokens of a request with the prefix `known`; see `can_begin`."""
        request.blocks = self._blocks.begin(known.blocks, request.num_tokens)
        request.num_named = len(known.blocks)
        request.num_computed = request.num_named * self.block_size
        if self._states:
            last = known.names[-1] if known.names else None
            self._states.begin(request, last, known.num_there)

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Extend the blocks of `request` to `num_tokens`; False, unchanged, if too few are free."""
        return self._blocks.grow(request.blocks, num_tokens)

    def grow_spare(self, request: Request, num_tokens: int) -> bool:
        """Do the same as `grow`, but only with blocks that hold no cached prefix."""
        return self._blocks.grow_spare(request.blocks, num_tokens)

    def shrink(self, request: Request) -> None:
        """Free the blocks of `request` beyond its tokens."""
        self._blocks.shrink(request.blocks, request.num_tokens)

    def with_state(self, chunk: Chunk) -> Chunk:
        """Return `chunk` with state slots, if the model has recurrent layers."""
        if not self._states:
            return chunk
        use = self._states.use(chunk.request, chunk.start, chunk.end, is_ahead=chunk.is_ahead)
        return replace(chunk, state=use)

    def commit(self, chunk: Chunk, *, is_running: bool) -> None:
        """Add what a chunk computed to the prefix cache, unless its request has ended meanwhile."""
        if is_running:
            self._name_blocks(chunk.request)
        if self._states and chunk.state:
            self._states.commit(chunk.request, chunk.state, is_running=is_running)

    def end(self, request: Request) -> None:
        """Free the blocks and slots of `request`."""
        self._blocks.release(request.blocks)
        if self._states:
            self._states.end(request)
        request.num_computed = request.num_named = 0
        request.seq2seq_state = Seq2SeqState()

    def check(self, running: Sequence[Request]) -> None:
        """Assert that only `running` requests hold memory."""
        self._blocks.check([request.blocks for request in running])
        if self._states:
            self._states.check(running)

    def _shareable(self, request: Request) -> list[bytes]:
        """Return the names of the blocks that it need not compute if they are cached."""
        if not self._shares_prefixes:
            return []
        return name_blocks(request, self.block_size, request.num_skippable)

    def _name_blocks(self, request: Request) -> None:
        """Add the blocks that `request` has filled to the prefix cache."""
        size = self.block_size
        if self._shares_prefixes and request.num_computed >= (request.num_named + 1) * size:
            names = name_blocks(request, size, request.num_computed)
            for i in range(request.num_named, len(names)):
                self._blocks.name(request.blocks[i], names[i])
            request.num_named = len(names)
