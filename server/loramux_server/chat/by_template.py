"""What is known of templates, found out once for each format that they are run in."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from loramux_server.chat.chat import Chat
from loramux_server.chat.format import ChatFormat

KEPT = 256
"""Templates of which it is remembered."""

T = TypeVar("T")


class ByTemplate(Generic[T]):
    """Remembers what was found out of the templates that were used last."""

    def __init__(self, chat: Chat, find_out: Callable[[ChatFormat], Awaitable[T]]) -> None:
        """Remember nothing yet; `find_out` is given what is to be known of."""
        self._chat = chat
        self._find_out = find_out
        self._known: OrderedDict[ChatFormat, T] = OrderedDict()

    async def get(self, chat_format: ChatFormat) -> T:
        """Return what is known of the template of `chat_format`.

        Raises:
            FailedPreconditionError: There is no template.
            LoramuxError: What `find_out` raises, which is not remembered.
        """
        self._chat.source(chat_format)
        # An adapter's that is the same text has a process of its own, and is found out by itself.
        if chat_format not in self._known:
            self._known[chat_format] = await self._find_out(chat_format)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(chat_format)
        return self._known[chat_format]
