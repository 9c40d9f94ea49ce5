"""The catalog: versions of adapters, aliases, keys and policies, in a database.

SQLite by default: write-ahead log, synchronous=FULL, one writer. A change survives a crash and a
power cut once its method has returned.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from loramux_adapters.extras import install_command
from loramux_server.store.alias import Move, Split
from loramux_server.store.disabled_tenants import DisabledTenants
from loramux_server.store.key_records import KeyRecords
from loramux_server.store.policies import Policies
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import DEFAULT_TENANT
from loramux_server.store.reserve import Reserve
from loramux_server.store.schema import aliases, moves, names, prepare, store, versions
from loramux_server.store.times import in_utc
from loramux_server.store.transactions import Transactions

Contents = tuple[
    list[AdapterRecord], dict[tuple[str, str], int], list[tuple[tuple[str, str], str, Split]]
]


class CatalogUrlError(Exception):
    """A catalog URL is not valid, or its driver is missing."""


class CatalogAwayError(CatalogUrlError):
    """A database does not answer or refuses the login; a later attempt may succeed."""


_LISTS = ("target_modules", "invocation")
"""Columns that are stored as JSON."""


class Catalog:
    """The durable state of a store, except package files."""

    def __init__(self, url: str, reserve: Reserve | None = None) -> None:
        """Open the database at the SQLAlchemy URL `url`; an older format is migrated.

        Args:
            url: The URL.
            reserve: Disk space for small changes when the disk is full.

        Raises:
            NewerFormatError: A newer version of the server wrote it.
        """
        # A remote database may have restarted since the last query.
        self._engine = sa.create_engine(url, pool_pre_ping=True)
        self.reserve = reserve
        self._transactions = Transactions(self._engine, reserve)
        self.needs_reload = False
        """Whether a failed write may still have been committed; whoever finds out clears it."""
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
            # The driver's implicit transactions do not include DDL.
            sa.event.listen(self._engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))
        try:
            self._transactions.small(partial(prepare, default_tenant=DEFAULT_TENANT))
        except BaseException:
            self.close()
            raise
        self.keys = KeyRecords(self._transactions)
        self.policies = Policies(self._transactions)
        self.disabled_tenants = DisabledTenants(self._transactions)

    @classmethod
    def in_folder(cls, folder: Path) -> "Catalog":
        """Open the SQLite catalog in `folder`."""
        return cls(f"sqlite:///{folder / 'catalog.sqlite'}", Reserve(folder))

    @classmethod
    def at(cls, url: str | None, folder: Path) -> "Catalog":
        """Open the catalog at `url`, or the one in `folder` if `url` is None.

        Raises:
            CatalogAwayError: The database does not answer.
            CatalogUrlError: The URL is not valid, or its driver is missing; the message says which.
            NewerFormatError: A newer version of the server wrote it.
        """
        if url is None:
            return cls.in_folder(folder)
        try:
            return cls(url)
        except sa.exc.OperationalError as error:
            (cause, *_) = str(error.orig).splitlines() or [""]
            raise CatalogAwayError(f"--catalog cannot be opened: {cause}") from None
        except (sa.exc.ArgumentError, ImportError) as error:
            raise CatalogUrlError(
                f"--catalog: {error}; expected an SQLAlchemy URL, and for postgresql+psycopg:// "
                f"{install_command('postgres')} installs the driver"
            ) from None

    def contents(self) -> Contents:
        """Return all that references resolve to: versions, the last numbers, and aliases."""
        return list(self.versions()), self.last_versions(), list(self.aliases())

    def versions(self) -> Iterator[AdapterRecord]:
        """Yield every version, sorted by tenant, name and number."""
        order = (versions.c.tenant, versions.c.name, versions.c.version)
        with self._transactions.read() as connection:
            for row in connection.execute(sa.select(versions).order_by(*order)):
                values = dict(row._mapping)
                for column in _LISTS:
                    values[column] = tuple(json.loads(values[column]))
                for moment in ("created_at", "expires_at"):
                    values[moment] = values[moment] and in_utc(values[moment])
                yield AdapterRecord(**values)

    def last_versions(self) -> dict[tuple[str, str], int]:
        """Return the last version number ever assigned, by tenant and name."""
        with self._transactions.read() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(sa.select(names))}

    def aliases(self) -> Iterator[tuple[tuple[str, str], str, Split]]:
        """Yield ((tenant, name), alias, split)."""
        with self._transactions.read() as connection:
            for tenant, name, alias, split in connection.execute(sa.select(aliases)):
                yield (tenant, name), alias, Split.load(split)

    def moves(
        self, adapter: tuple[str, str], alias: str, *, before: int | None, limit: int
    ) -> list[Move]:
        """Return moves of an alias, newest first: at most `limit`, with numbers below `before`."""
        found = _of(moves, adapter) & (moves.c.alias == alias)
        if before is not None:
            found &= moves.c.number < before
        query = sa.select(moves).where(found).order_by(moves.c.number.desc()).limit(limit)
        with self._transactions.read() as connection:
            return [_move(row) for row in connection.execute(query)]

    def add(self, record: AdapterRecord, replaced: Collection[AdapterRecord] = ()) -> None:
        """Insert a new version and delete those `replaced`."""
        values = {column.name: getattr(record, column.name) for column in versions.columns}
        values |= {column: json.dumps(values[column]) for column in _LISTS}
        number = {"last_version": record.version}
        is_later = names.c.last_version < record.version

        def add(connection: sa.Connection) -> None:
            _delete(connection, replaced)
            connection.execute(sa.insert(versions).values(values))
            found = _of(names, record.adapter)
            if connection.execute(sa.select(names).where(found)).first() is None:
                connection.execute(
                    sa.insert(names).values(tenant=record.tenant, name=record.name, **number)
                )
            connection.execute(sa.update(names).where(found & is_later).values(number))

        self._change(add)

    def update(self, record: AdapterRecord) -> None:
        """Store the mutable fields of a version: stamp, seal, pin and expiry time."""
        found = _of(versions, record.adapter) & (versions.c.version == record.version)
        changed = {
            column: getattr(record, column)
            for column in ("stamp", "seal", "is_pinned", "expires_at")
        }
        update = sa.update(versions).where(found).values(changed)
        self._change(lambda connection: connection.execute(update), is_small=True)

    def keep_seals(self, seals: Mapping[str, str]) -> None:
        """Store the seals of all versions with these contents: digest -> seal."""

        def keep(connection: sa.Connection) -> None:
            for digest, seal in seals.items():
                found = versions.c.digest == digest
                connection.execute(sa.update(versions).where(found).values(seal=seal))

        self._change(keep)

    def remove(self, records: Collection[AdapterRecord]) -> None:
        """Delete versions; with the last one of an adapter, also its aliases and their moves."""

        def forget(connection: sa.Connection) -> None:
            _delete(connection, records)
            for adapter in {record.adapter for record in records}:
                left = sa.select(sa.func.count()).select_from(versions)
                if not connection.scalar(left.where(_of(versions, adapter))):
                    for table in (aliases, moves):
                        connection.execute(sa.delete(table).where(_of(table, adapter)))

        self._change(forget, is_small=True)

    def move(self, move: Move) -> None:
        """Store what an alias resolves to from now on, and append the move to its history."""
        adapter = (move.tenant, move.name)
        which = {"tenant": move.tenant, "name": move.name, "alias": move.alias}

        def write(connection: sa.Connection) -> None:
            connection.execute(
                sa.delete(aliases).where(_of(aliases, adapter) & (aliases.c.alias == move.alias))
            )
            if move.after.weights:
                connection.execute(sa.insert(aliases).values(split=move.after.dump(), **which))
            connection.execute(
                sa.insert(moves).values(
                    before=move.before.dump(),
                    after=move.after.dump(),
                    moved_at=move.moved_at,
                    moved_by=move.moved_by,
                    **which,
                )
            )

        self._change(write, is_small=True)

    def note(self, key: str) -> str | None:
        """Return the note `key` about the store as a whole; None if there is none."""
        with self._transactions.read() as connection:
            return connection.scalar(sa.select(store.c.value).where(store.c.key == key))

    def first_note(self, key: str, value: str) -> str:
        """Store `value` as note `key` unless there is one, and return the stored note."""
        if (found := self.note(key)) is not None:
            return found
        insert = sa.insert(store).values(key=key, value=value)
        with contextlib.suppress(sa.exc.IntegrityError):  # another server was first
            self._change(lambda connection: connection.execute(insert), is_small=True)
        found = self.note(key)
        assert found is not None
        return found

    def keep_note(self, key: str, value: str) -> None:
        """Store `value` as note `key`."""

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(store).where(store.c.key == key))
            connection.execute(sa.insert(store).values(key=key, value=value))

        self._change(write, is_small=True)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()
        if self.reserve:
            self.reserve.close()

    def _change(self, change: Callable[[sa.Connection], object], *, is_small: bool = False) -> None:
        """Run `change` in a transaction; `is_small` if it needs little space or frees some."""
        run = self._transactions.small if is_small else self._transactions.large
        try:
            run(change)
        except BaseException:
            self.needs_reload = True
            raise


def _of(table: sa.Table, adapter: tuple[str, str]) -> sa.ColumnElement[bool]:
    tenant, name = adapter
    return (table.c.tenant == tenant) & (table.c.name == name)


def _delete(connection: sa.Connection, records: Collection[AdapterRecord]) -> None:
    for record in records:
        connection.execute(
            sa.delete(versions).where(
                _of(versions, record.adapter) & (versions.c.version == record.version)
            )
        )


def _move(row: sa.Row[tuple[object, ...]]) -> Move:
    values = dict(row._mapping)
    values["before"], values["after"] = Split.load(values["before"]), Split.load(values["after"])
    values["moved_at"] = in_utc(values["moved_at"])
    return Move(**values)


def _configure_sqlite(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
