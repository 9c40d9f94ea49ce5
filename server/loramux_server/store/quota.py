"""Storage quotas of tenants: what versions and uploads in progress take of them.

Content that a tenant has under several names counts once. Adapters from the operator's directory do
not count.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from loramux.errors import ResourceExhaustedError
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import Reference


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """What one tenant may store; 0 means unlimited."""

    max_bytes: int = 0
    max_adapters: int = 0
    """Names, regardless of their number of versions."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Quota reserved for a package that is being uploaded."""

    reference: Reference
    digest: str
    num_bytes: int
    """Bytes that it still needs: 0 once its content is stored."""


@dataclass(slots=True)
class _Account:
    """The usage of one tenant."""

    stored: Counter[str] = field(default_factory=Counter)
    """Digest -> number of versions."""
    stored_bytes: int = 0
    names: Counter[str] = field(default_factory=Counter)
    """Name -> number of versions and reservations."""
    reservations: set[Reservation] = field(default_factory=set)

    @property
    def num_bytes(self) -> int:
        return self.stored_bytes + sum(r.num_bytes for r in self.reservations)


class Quotas:
    """The accounts of all tenants. Thread-safe; never blocks for long."""

    def __init__(
        self, limits_of: Callable[[str], StorageLimits] = lambda tenant: StorageLimits()
    ) -> None:
        """Begin with nothing stored; `limits_of` is called at each reservation."""
        self._limits_of = limits_of
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()

    def taken(self, tenant: str) -> tuple[int, int]:
        """Return the bytes and the number of adapters of a tenant, reservations included."""
        with self._lock:
            account = self._accounts.get(tenant, _Account())
            return account.num_bytes, len(account.names)

    def reserve(self, reference: Reference, digest: str, size: int) -> Reservation:
        """Reserve quota for a package; `give_back` the reservation in the end, in any case.

        Args:
            reference: The adapter that it will be a version of.
            digest: Its digest; empty if that is not known yet.
            size: Its bytes.

        Raises:
            ResourceExhaustedError: It would exceed the tenant's limits.
        """
        limits = self._limits_of(reference.tenant)
        with self._lock:
            account = self._accounts.get(reference.tenant, _Account())
            needed = 0 if digest in account.stored else size
            if needed and 0 < limits.max_bytes < account.num_bytes + needed:
                raise _exceeded(
                    reference.tenant,
                    f"uses {account.num_bytes} of {limits.max_bytes} bytes, uploads in progress "
                    f"included; {needed} more do not fit",
                )
            is_known = reference.name in account.names
            if not is_known and 0 < limits.max_adapters <= len(account.names):
                raise _exceeded(
                    reference.tenant,
                    f"has {len(account.names)} of {limits.max_adapters} adapters, uploads in "
                    f"progress included; {reference.name!r} would be one more",
                )
            reservation = Reservation(reference, digest, needed)
            account.reservations.add(reservation)
            account.names[reference.name] += 1
            self._accounts[reference.tenant] = account
            return reservation

    def give_back(self, reservation: Reservation) -> None:
        """Free a reservation; a second call does nothing."""
        tenant, name = reservation.reference.tenant, reservation.reference.name
        with self._lock:
            account = self._accounts.get(tenant)
            if account and reservation in account.reservations:
                account.reservations.remove(reservation)
                self._take_name(tenant, account, name)

    @contextmanager
    def reserved(self, reference: Reference, digest: str, size: int) -> Iterator[None]:
        """Reserve quota during the block; see `reserve`."""
        reservation = self.reserve(reference, digest, size)
        try:
            yield
        finally:
            self.give_back(reservation)

    def add(self, record: AdapterRecord) -> None:
        """Count a version; reservations for its content no longer count bytes."""
        if record.is_provided:
            return
        with self._lock:
            account = self._accounts.get(record.tenant)
            if account is None:
                account = self._accounts[record.tenant] = _Account()
            if record.digest not in account.stored:
                account.stored_bytes += record.size_bytes
            account.stored[record.digest] += 1
            account.names[record.name] += 1
            for reservation in account.reservations:
                if reservation.digest == record.digest:
                    reservation.num_bytes = 0

    def remove(self, record: AdapterRecord) -> None:
        """Stop counting a version."""
        if record.is_provided:
            return
        with self._lock:
            account = self._accounts[record.tenant]
            account.stored[record.digest] -= 1
            if not account.stored[record.digest]:
                del account.stored[record.digest]
                account.stored_bytes -= record.size_bytes
            self._take_name(record.tenant, account, record.name)

    def _take_name(self, tenant: str, account: _Account, name: str) -> None:
        account.names[name] -= 1
        if not account.names[name]:
            del account.names[name]
        if not account.names:
            del self._accounts[tenant]


def _exceeded(tenant: str, what: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"tenant {tenant!r} {what}; delete unneeded adapters",
        reason="STORAGE_QUOTA_EXCEEDED",
        quota=f"tenant:{tenant}",
    )
