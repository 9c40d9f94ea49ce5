"""The disabled tenants, in the catalog."""

import datetime

import sqlalchemy as sa

from loramux_server.store.revision import mark_change, read_revision
from loramux_server.store.schema import disabled_tenants
from loramux_server.store.times import in_utc
from loramux_server.store.transactions import Transactions


class DisabledTenants:
    """All disabled tenants; what belongs to them stays as it is."""

    def __init__(self, transactions: Transactions) -> None:
        """Work on the tables of the catalog."""
        self._transactions = transactions

    def revision(self) -> str:
        """Return a text that differs after each change."""
        return read_revision(self._transactions.engine)

    def all(self) -> dict[str, datetime.datetime]:
        """Return the disabled tenants, and since when each is disabled."""
        query = sa.select(disabled_tenants).order_by(disabled_tenants.c.tenant)
        with self._transactions.read() as connection:
            return {row.tenant: in_utc(row.disabled_at) for row in connection.execute(query)}

    def add(self, tenant: str, at: datetime.datetime) -> bool:
        """Disable a tenant; return False if it is disabled already."""

        def write(connection: sa.Connection) -> bool:
            mark_change(connection)
            known = sa.select(disabled_tenants).where(disabled_tenants.c.tenant == tenant)
            if connection.execute(known).first():
                return False
            values = {"tenant": tenant, "disabled_at": at}
            connection.execute(sa.insert(disabled_tenants).values(values))
            return True

        return self._transactions.small(write)

    def remove(self, tenant: str) -> bool:
        """Enable a tenant again; return False if it was not disabled."""

        def write(connection: sa.Connection) -> bool:
            mark_change(connection)
            gone = connection.execute(
                sa.delete(disabled_tenants).where(disabled_tenants.c.tenant == tenant)
            )
            return gone.rowcount > 0

        return self._transactions.small(write)
