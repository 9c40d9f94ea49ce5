"""Where a call receives its results from the engine."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from loramux.errors import LoramuxError
from loramux_server.wire.messages import Started, Token

MAX_UNREAD = 1024
"""Tokens and log-probabilities that may wait for a call's reader: some 100 KB."""
_MANY = MAX_UNREAD // 2
"""This many wake the reader whatever its interval, before the engine pauses its request."""

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Results of one call, such as tokens, that its reader has not taken yet."""

    def __init__(
        self,
        on_started: Callable[[Started], None],
        on_full: Callable[[bool], None] = lambda is_full: None,
        interval: int = 1,
    ) -> None:
        """Begin empty.

        Args:
            on_started: Called when a completion left the engine's queue.
            on_full: Called with True when the reader is too far behind for more to come, and with
                False when it has caught up.
            interval: Tokens of one completion per wake-up of the reader; the first and the last of
                a completion always wake it.
        """
        self.on_started = on_started
        self._on_full = on_full
        self._interval = interval
        self._is_due = False
        """Whether enough is there to wake the reader."""
        self._begun: set[int] = set()
        """Completions of which something was taken."""
        self._is_full = False
        self._size = 0
        """Tokens and log-probabilities in the mailbox."""
        self._items: dict[int, list[Item]] = {}
        self._error: LoramuxError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> dict[int, list[Item]]:
        """Wait for results, and return all that have arrived, in order, by completion index.

        Raises:
            LoramuxError: A completion failed, or the engine died, and nothing is left to take.
        """
        if not (self._is_due or self._error):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error and not self._items:
            raise self._error
        items, self._items, self._size = self._items, {}, 0
        self._is_due = False
        self._begun.update(items)
        self._fill(False)
        return items

    def num_waiting(self, index: int) -> int:
        """Return how many tokens of the completion at `index` have not been taken."""
        return sum(isinstance(item, Token) for item in self._items.get(index, ()))

    def put(self, index: int, item: Item) -> None:
        """Add a result of the completion at `index`."""
        items = self._items.setdefault(index, [])
        items.append(item)
        self._size += _size(item)
        if self._size > MAX_UNREAD:
            self._fill(True)
        is_enough = len(items) >= self._interval or self._size >= _MANY
        if is_enough or index not in self._begun or _is_last(item):
            self._is_due = True
            self._wake()

    def fail(self, error: LoramuxError) -> None:
        """Make `take` raise `error`."""
        self._error = error
        self._wake()

    def _fill(self, is_full: bool) -> None:
        if is_full != self._is_full:
            self._is_full = is_full
            self._on_full(is_full)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


def _is_last(item: object) -> bool:
    return not isinstance(item, Token) or item.finish is not None


def _size(item: object) -> int:
    """Return the number of tokens and log-probabilities in `item`."""
    if isinstance(item, Token) and item.logprobs:
        return 1 + len(item.logprobs.top)
    return 1
