"""A cache of properties derived from chat templates, by chat format."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from loramux_server.chat.chat import Chat
from loramux_server.chat.format import ChatFormat

KEPT = 256
"""Formats whose result is cached."""

T = TypeVar("T")


class TemplateCache(Generic[T]):
    """An LRU cache of what a function derives from a chat format."""

    def __init__(self, chat: Chat, compute: Callable[[ChatFormat], Awaitable[T]]) -> None:
        """Begin empty; `compute` computes the result for a format."""
        self._chat = chat
        self._compute = compute
        self._known: OrderedDict[ChatFormat, T] = OrderedDict()

    async def get(self, chat_format: ChatFormat) -> T:
        """Return the result for `chat_format`, computed if it is not cached.

        Raises:
            FailedPreconditionError: There is no template.
            LoramuxError: What `compute` raises; that is not cached.
        """
        self._chat.source(chat_format)
        # By format, not by text: an adapter's copy of the base's template runs in another process.
        if chat_format not in self._known:
            self._known[chat_format] = await self._compute(chat_format)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(chat_format)
        return self._known[chat_format]
