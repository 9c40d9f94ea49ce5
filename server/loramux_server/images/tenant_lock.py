"""Fair access to an exclusive resource: tenants take turns."""

import asyncio
from collections import OrderedDict, deque


class TenantLock:
    """A lock that is handed out round-robin over tenants."""

    def __init__(self) -> None:
        """Start unlocked."""
        self._is_locked = False
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """The waiters of each tenant; the tenant whose turn is next comes first."""

    async def acquire(self, tenant: str) -> None:
        """Wait until it is `tenant`'s turn; `release` ends the turn."""
        if not self._is_locked:
            self._is_locked = True
            return
        given = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():  # the turn was given, but the caller was cancelled
                self.release()
            raise

    def release(self) -> None:
        """End the turn and wake the next waiter."""
        while self._queues:
            tenant, queue = self._queues.popitem(last=False)
            given = queue.popleft()
            if queue:
                self._queues[tenant] = queue
            if not given.done():
                given.set_result(None)
                return
        self._is_locked = False
