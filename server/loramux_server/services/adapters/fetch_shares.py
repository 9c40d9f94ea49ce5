"""Per-tenant limits on fetching on demand, so that one tenant cannot block the others."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from loramux.errors import ResourceExhaustedError
from loramux_server.services.adapters.imports import MAX_AT_ONCE

MAX_FETCHING = 256
"""Adapters being fetched or queued for it; one tenant may have half of them."""
MAX_WAITING_BYTES = 64 << 20
"""Memory of calls that wait for adapters; one tenant may have half of it."""
CALL_BYTES = 16 << 10
"""Estimated memory of a call besides its message."""


@dataclass(slots=True)
class _Share:
    """What the callers of one tenant use."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_AT_ONCE - 1))
    """Limits concurrent fetches to fewer than all imports at once."""
    num_fetching: int = 0
    num_bytes: int = 0


class Shares:
    """Counts what each tenant's callers make the server fetch. Runs on the event loop."""

    def __init__(self) -> None:
        self._shares: defaultdict[str, _Share] = defaultdict(_Share)
        self._all = _Share()

    @contextmanager
    def waiting(self, tenant: str, num_bytes: int, name: str) -> Iterator[None]:
        """Count a call of `num_bytes` that waits for an adapter, named in the field `name`.

        Raises:
            ResourceExhaustedError: Too many wait. A tenant's first call may always wait.
        """
        share, num_bytes = self._shares[tenant], num_bytes + CALL_BYTES
        if share.num_bytes and (
            share.num_bytes + num_bytes > MAX_WAITING_BYTES // 2
            or self._all.num_bytes + num_bytes > MAX_WAITING_BYTES
        ):
            raise _busy(name, "too many calls are waiting for adapters that are being fetched")
        for each in (share, self._all):
            each.num_bytes += num_bytes
        try:
            yield
        finally:
            for each in (share, self._all):
                each.num_bytes -= num_bytes
            self._clear(tenant)

    def begin(self, tenant: str, name: str) -> asyncio.Semaphore:
        """Count one more fetch until `end`; return the semaphore that limits the tenant's fetches.

        Raises:
            ResourceExhaustedError: There are too many, for this tenant or in all.
        """
        share = self._shares[tenant]
        if share.num_fetching >= MAX_FETCHING // 2:
            raise _busy(name, f"{share.num_fetching} adapters are being fetched for your tenant")
        if self._all.num_fetching >= MAX_FETCHING:
            raise _busy(name, f"{MAX_FETCHING} adapters are being fetched")
        for each in (share, self._all):
            each.num_fetching += 1
        return share.slots

    def end(self, tenant: str) -> None:
        """Count one fetch less."""
        for each in (self._shares[tenant], self._all):
            each.num_fetching -= 1
        self._clear(tenant)

    def _clear(self, tenant: str) -> None:
        share = self._shares[tenant]
        if not (share.num_fetching or share.num_bytes):
            del self._shares[tenant]


def _busy(name: str, why: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{name}: {why}; try again", reason="SERVER_BUSY", field=name, retry_delay=1.0
    )
