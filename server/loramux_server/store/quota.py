"""What each tenant may store, and how much of it is taken: by versions, and by what is on its way.

Content that a tenant has under several names counts once. What the operator's own directory
provides does not count.
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
    """What one tenant may store; 0 means as much as there is room for."""

    max_bytes: int = 0
    max_adapters: int = 0
    """Names, however many versions they have."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Room for a package that is on its way."""

    reference: Reference
    digest: str
    num_bytes: int
    """What it still needs: nothing once its content is stored."""


@dataclass(slots=True)
class _Account:
    """What one tenant has."""

    stored: Counter[str] = field(default_factory=Counter)
    """Digest -> how many versions have it."""
    stored_bytes: int = 0
    names: Counter[str] = field(default_factory=Counter)
    """Name -> how many versions and reservations have it."""
    reservations: set[Reservation] = field(default_factory=set)

    @property
    def num_bytes(self) -> int:
        return self.stored_bytes + sum(r.num_bytes for r in self.reservations)


class Quotas:
    """The accounts of all tenants. Threads may share it; it waits for nothing."""

    def __init__(
        self, limits_of: Callable[[str], StorageLimits] = lambda tenant: StorageLimits()
    ) -> None:
        """Begin with nothing stored; `limits_of` a tenant is asked anew each time."""
        self._limits_of = limits_of
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()

    def taken(self, tenant: str) -> tuple[int, int]:
        """Return the bytes and the adapters that a tenant has, what is on its way included."""
        with self._lock:
            account = self._accounts.get(tenant, _Account())
            return account.num_bytes, len(account.names)

    def reserve(self, reference: Reference, digest: str, size: int) -> Reservation:
        """Take room for a package that is to come; `give_back` it in the end, whatever became.

        Args:
            reference: The adapter that it will be a version of.
            digest: Its content; empty if that is not known yet.
            size: Its bytes.

        Raises:
            ResourceExhaustedError: The tenant has too much already.
        """
        limits = self._limits_of(reference.tenant)
        with self._lock:
            account = self._accounts.get(reference.tenant, _Account())
            needed = 0 if digest in account.stored else size
            if needed and 0 < limits.max_bytes < account.num_bytes + needed:
                raise _exceeded(
                    reference.tenant,
                    f"has {account.num_bytes} of {limits.max_bytes} bytes, what is on its way "
                    f"included, and {needed} more were to come",
                )
            is_known = reference.name in account.names
            if not is_known and 0 < limits.max_adapters <= len(account.names):
                raise _exceeded(
                    reference.tenant,
                    f"has {len(account.names)} of {limits.max_adapters} adapters, what is on its "
                    f"way included, and {reference.name!r} would be one more",
                )
            reservation = Reservation(reference, digest, needed)
            account.reservations.add(reservation)
            account.names[reference.name] += 1
            self._accounts[reference.tenant] = account
            return reservation

    def give_back(self, reservation: Reservation) -> None:
        """Free what was reserved; a second time does nothing."""
        tenant, name = reservation.reference.tenant, reservation.reference.name
        with self._lock:
            account = self._accounts.get(tenant)
            if account and reservation in account.reservations:
                account.reservations.remove(reservation)
                self._take_name(tenant, account, name)

    @contextmanager
    def reserved(self, reference: Reference, digest: str, size: int) -> Iterator[None]:
        """Take room for as long as the block runs; see `reserve`."""
        reservation = self.reserve(reference, digest, size)
        try:
            yield
        finally:
            self.give_back(reservation)

    def add(self, record: AdapterRecord) -> None:
        """Count a version; what was reserved for its content is needed no longer."""
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
        """Count a version no longer."""
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
        f"tenant {tenant!r} {what}; delete what is not needed",
        reason="STORAGE_QUOTA_EXCEEDED",
        quota=f"tenant:{tenant}",
    )
