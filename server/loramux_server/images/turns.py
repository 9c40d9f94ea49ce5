"""Fair access to an exclusive resource: tenants take turns."""

import asyncio
from collections import OrderedDict, deque


class TenantTurns:
    """A lock that is handed out round-robin over tenants."""

    def __init__(self) -> None:
        """Start unlocked."""
        self._is_taken = False
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """The waiters of each tenant; the tenant whose turn is next comes first."""

    async def take(self, tenant: str) -> None:
        """Wait until it is `tenant`'s turn; `give_back` ends the turn."""
        if not self._is_taken:
            self._is_taken = True
            return
        given = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():  # the turn was given, but the caller was cancelled
                self.give_back()
            raise

    def give_back(self) -> None:
        """End the turn and wake the next waiter."""
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            given = line.popleft()
            if line:
                self._lines[tenant] = line
            if not given.done():
                given.set_result(None)
                return
        self._is_taken = False
