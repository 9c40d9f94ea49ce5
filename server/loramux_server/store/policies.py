"""The policies of tenants, in the catalog."""

from dataclasses import fields

import sqlalchemy as sa

from loramux_server.store.policy import Policy
from loramux_server.store.revision import mark_change, read_revision
from loramux_server.store.schema import policies
from loramux_server.store.transactions import Transactions


class Policies:
    """The policies of all tenants that have one."""

    def __init__(self, transactions: Transactions) -> None:
        """Work on the tables of the catalog."""
        self._transactions = transactions

    def revision(self) -> str:
        """Return a text that differs after each change."""
        return read_revision(self._transactions.engine)

    def all(self) -> list[Policy]:
        """Return every policy, sorted by tenant."""
        names = [field.name for field in fields(Policy)]
        query = sa.select(*(policies.c[name] for name in names)).order_by(policies.c.tenant)
        with self._transactions.read() as connection:
            return [Policy(**row._mapping) for row in connection.execute(query)]

    def set(self, policy: Policy) -> None:
        """Set the policy of a tenant."""
        values = {field.name: getattr(policy, field.name) for field in fields(policy)}

        def write(connection: sa.Connection) -> None:
            mark_change(connection)
            connection.execute(sa.delete(policies).where(policies.c.tenant == policy.tenant))
            connection.execute(sa.insert(policies).values(values))

        self._transactions.small(write)

    def remove(self, tenant: str) -> bool:
        """Remove the policy of a tenant; return whether it had one."""

        def write(connection: sa.Connection) -> bool:
            mark_change(connection)
            gone = connection.execute(sa.delete(policies).where(policies.c.tenant == tenant))
            return gone.rowcount > 0

        return self._transactions.small(write)
