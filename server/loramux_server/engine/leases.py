"""Which requests wait for their adapters, and which hold a lease that keeps theirs resident.

Requests for the base model need neither.
"""

from typing import Protocol

from loramux_server.engine.request import Request
from loramux_server.lora.use import Waiter
from loramux_server.wire.adapter_source import AdapterSource


class Adapters(Protocol):
    """The part of the adapter cache that is needed here."""

    def want(self, source: AdapterSource, waiter: Waiter) -> None:
        """Record that one more request, `waiter`, waits for `source`."""

    def unwant(self, digest: str, waiter: Waiter) -> None:
        """Record that `waiter` no longer waits for an adapter."""

    def acquire(self, digest: str, waiter: Waiter) -> bool:
        """Turn the wait of `waiter` into a lease if the adapter is resident."""

    def release(self, digest: str) -> None:
        """Release a lease."""


class Leases:
    """Acquires and releases the adapters of requests."""

    def __init__(self, adapters: Adapters) -> None:
        """Begin without requests."""
        self._adapters = adapters

    def want(self, request: Request) -> None:
        """Record that `request` waits for its adapter."""
        if request.adapter:
            self._adapters.want(request.adapter, _waiter(request))

    def unwant(self, request: Request) -> None:
        """Record that `request` no longer waits for its adapter."""
        if request.digest:
            self._adapters.unwant(request.digest, _waiter(request))

    def acquire(self, request: Request) -> bool:
        """Lease the adapter of `request`, which waits for it; False if it is not resident."""
        return not request.digest or self._adapters.acquire(request.digest, _waiter(request))

    def release(self, request: Request) -> None:
        """Release the lease of `request`."""
        if request.digest:
            self._adapters.release(request.digest)


def _waiter(request: Request) -> Waiter:
    return Waiter(request.tenant, request.priority)
