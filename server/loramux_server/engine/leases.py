"""Which requests wait for their adapters, and which have a lease, so that these stay resident.

Those of the base model have none to wait for.
"""

from typing import Protocol

from loramux_server.engine.request import Request
from loramux_server.wire.adapter_source import AdapterSource


class Adapters(Protocol):
    """What is needed of the adapter cache."""

    def want(self, source: AdapterSource) -> None:
        """Note that one more request waits for `source`."""

    def unwant(self, digest: str) -> None:
        """Note that one request waits no longer."""

    def acquire(self, digest: str) -> bool:
        """Turn a wait into a lease if the adapter is resident."""

    def release(self, digest: str) -> None:
        """Give back a lease."""


class Leases:
    """Gives requests their adapters, and takes them back."""

    def __init__(self, adapters: Adapters) -> None:
        """Begin without requests."""
        self._adapters = adapters

    def want(self, request: Request) -> None:
        """Note that `request` waits."""
        if request.adapter:
            self._adapters.want(request.adapter)

    def unwant(self, request: Request) -> None:
        """Note that `request` waits no longer."""
        if request.digest:
            self._adapters.unwant(request.digest)

    def acquire(self, request: Request) -> bool:
        """Let `request`, which waits, have its adapter; False, and no change, if it is away."""
        return not request.digest or self._adapters.acquire(request.digest)

    def release(self, request: Request) -> None:
        """Take its adapter from `request`."""
        if request.digest:
            self._adapters.release(request.digest)
