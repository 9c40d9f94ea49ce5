"""Whose turn it is at what does one thing at a time: tenants take turns."""

import asyncio
from collections import OrderedDict, deque


class TenantTurns:
    """Gives one turn at a time."""

    def __init__(self) -> None:
        """Begin with nobody at it."""
        self._is_taken = False
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Those who wait, by tenant; the tenant whose turn is next comes first."""

    async def take(self, tenant: str) -> None:
        """Return when it is the turn of the caller, who is of `tenant`; `give_back` ends it."""
        if not self._is_taken:
            self._is_taken = True
            return
        given = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():  # it came, and the caller went
                self.give_back()
            raise

    def give_back(self) -> None:
        """Let the next one have a turn."""
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            given = line.popleft()
            if line:
                self._lines[tenant] = line
            if not given.done():
                given.set_result(None)
                return
        self._is_taken = False
