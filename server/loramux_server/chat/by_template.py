"""What is known of templates, found out once for each."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from loramux_server.chat.chat import Chat

KEPT = 256
"""Templates of which it is remembered."""

T = TypeVar("T")


class ByTemplate(Generic[T]):
    """Remembers what was found out of the templates that were used last."""

    def __init__(self, chat: Chat, find_out: Callable[[str | None], Awaitable[T]]) -> None:
        """Remember nothing yet; `find_out` is given a template, None for the base model's."""
        self._chat = chat
        self._find_out = find_out
        self._known: OrderedDict[tuple[str, bool], T] = OrderedDict()

    async def get(self, template: str | None) -> T:
        """Return what is known of a template: an adapter's, or None for the base model's.

        Raises:
            FailedPreconditionError: There is no template.
            LoramuxError: What `find_out` raises, which is not remembered.
        """
        # Nothing that adapters' templates do in their process counts for the base model's.
        key = self._chat.source(template), template is None
        if key not in self._known:
            self._known[key] = await self._find_out(template)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]
