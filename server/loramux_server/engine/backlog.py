"""What is still to be computed: of a request that comes now, and before it.

Knows nothing of tensors or clocks.
"""

from loramux_server.engine.contexts import Contexts
from loramux_server.engine.fair_queue import FairQueue
from loramux_server.engine.request import Request


class Backlog:
    """Counts the tokens of those who wait."""

    def __init__(self, waiting: FairQueue, contexts: Contexts) -> None:
        """Count what is in `waiting`, but for what is known of it."""
        self._waiting = waiting
        self._contexts = contexts

    @property
    def num_tokens(self) -> int:
        """Tokens that the queue has, of which `num_tokens_before` may be fewer."""
        return sum(request.num_tokens for request in self._waiting)

    def num_tokens_of(self, request: Request) -> int:
        """Return how many tokens of a request that has not started have to be computed."""
        num_known = len(self._contexts.known(request).blocks) * self._contexts.block_size
        return request.num_tokens - max(request.num_fillable, num_known)

    def num_tokens_before(self, tenant: str) -> int:
        """Return how many tokens are computed before a request of `tenant` that comes now.

        What requests share counts once.
        """
        names: set[bytes] = set()
        num_tokens, size = 0, self._contexts.block_size
        for request in self._waiting.before(tenant):
            if request.num_bypassed:  # it waits for its adapter, and others go before it
                continue
            num_filled = -(-request.num_fillable // size)
            expected = self._contexts.expected(request)[num_filled:]
            names.update(expected)
            num_tokens += max(0, request.num_tokens - (num_filled + len(expected)) * size)
        return num_tokens + size * sum(not self._contexts.is_known(name) for name in names)
