"""How many tokens remain to be computed: those of an arriving request, and those ahead of it.

Knows nothing of tensors or clocks.
"""

from loramux_server.engine.contexts import Contexts
from loramux_server.engine.fair_queue import FairQueue
from loramux_server.engine.request import Request


class Backlog:
    """Counts the tokens of waiting requests."""

    def __init__(self, waiting: FairQueue, contexts: Contexts) -> None:
        """Count the requests of `waiting`, without what `contexts` has cached of them."""
        self._waiting = waiting
        self._contexts = contexts

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting requests, an upper bound of `num_tokens_before`."""
        return sum(request.num_tokens for request in self._waiting)

    def num_tokens_of(self, request: Request) -> int:
        """Return how many tokens of a request that has not started have to be computed."""
        num_known = len(self._contexts.known(request).blocks) * self._contexts.block_size
        return request.num_tokens - max(request.num_fillable, num_known)

    def num_tokens_before(self, request: Request) -> int:
        """Return how many tokens would be computed before `request` if it arrived now.

        A prefix that several requests share counts once.
        """
        names: set[bytes] = set()
        num_tokens, size = 0, self._contexts.block_size
        for other in self._waiting.before(request):
            if other.num_bypassed:  # it waits for its adapter, and others go before it
                continue
            num_filled = -(-other.num_fillable // size)
            expected = self._contexts.expected(other)[num_filled:]
            names.update(expected)
            num_tokens += max(0, other.num_tokens - (num_filled + len(expected)) * size)
        return num_tokens + size * sum(not self._contexts.is_known(name) for name in names)
