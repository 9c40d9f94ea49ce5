"""The records of API keys in the catalog."""

import datetime
from dataclasses import dataclass

import sqlalchemy as sa

from loramux_server.store.revision import mark_change, read_revision
from loramux_server.store.schema import keys
from loramux_server.store.times import in_utc
from loramux_server.store.transactions import Transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """The record of one key."""

    id: str
    tenant: str
    role: str
    label: str
    """What it is for, as given by its creator."""
    digest: str
    """Hexadecimal HMAC of its text; the text itself is not stored."""
    created_at: datetime.datetime
    expires_at: datetime.datetime | None = None
    revoked_at: datetime.datetime | None = None

    def is_valid(self, now: datetime.datetime) -> bool:
        """Return whether it is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyRecords:
    """All keys that were ever created, oldest first."""

    def __init__(self, transactions: Transactions) -> None:
        """Work on the tables of the catalog."""
        self._transactions = transactions

    def revision(self) -> str:
        """Return a text that differs after each change."""
        return read_revision(self._transactions.engine)

    def all(self) -> list[KeyRecord]:
        """Return every key, including revoked and expired ones."""
        query = sa.select(keys).order_by(keys.c.created_at, keys.c.id)
        with self._transactions.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def add(self, record: KeyRecord) -> None:
        """Add a key."""

        def write(connection: sa.Connection) -> None:
            mark_change(connection)
            _insert(connection, record)

        self._transactions.small(write)

    def replace(self, key_id: str, record: KeyRecord, *, until: datetime.datetime) -> None:
        """Add a key that replaces `key_id`, which then expires at `until` at the latest."""
        is_later = keys.c.expires_at.is_(None) | (keys.c.expires_at > until)

        def write(connection: sa.Connection) -> None:
            mark_change(connection)
            _insert(connection, record)
            outdated = sa.update(keys).where((keys.c.id == key_id) & is_later)
            connection.execute(outdated.values(expires_at=until))

        self._transactions.small(write)

    def revoke(self, key_id: str, at: datetime.datetime) -> None:
        """Mark a key as revoked."""

        def write(connection: sa.Connection) -> None:
            mark_change(connection)
            good = sa.update(keys).where((keys.c.id == key_id) & keys.c.revoked_at.is_(None))
            connection.execute(good.values(revoked_at=at))

        self._transactions.small(write)


def _insert(connection: sa.Connection, record: KeyRecord) -> None:
    values = {column.name: getattr(record, column.name) for column in keys.columns}
    connection.execute(sa.insert(keys).values(values))


def _record(row: sa.Row[tuple[object, ...]]) -> KeyRecord:
    values = dict(row._mapping)
    for name in ("created_at", "expires_at", "revoked_at"):
        if values[name] is not None:
            values[name] = in_utc(values[name])
    return KeyRecord(**values)
