"""The names of adapters and what each stands for, in a database.

SQLite by default: write-ahead log, synchronous=FULL, one writer. What `put` has returned from
survives a crash and a power cut.
"""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

UPLOAD = "upload"
DIRECTORY = "directory"

_metadata = sa.MetaData()
_store = sa.Table(
    "store",
    _metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)
_adapters = sa.Table(
    "adapters",
    _metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("digest", sa.String(71), nullable=False, index=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("item_bytes", sa.Integer, nullable=False),
    sa.Column("target_modules", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("stamp", sa.Text, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """What the catalog knows of an adapter."""

    name: str
    digest: str
    size_bytes: int
    rank: int
    num_bytes: int
    item_bytes: int
    target_modules: tuple[str, ...]
    base_model: str
    source: str
    """UPLOAD or DIRECTORY."""
    stamp: str = ""
    """State of the files that it was imported from; empty for an upload."""
    created_at: datetime.datetime


class Catalog:
    """Name -> AdapterRecord, durable."""

    def __init__(self, url: str) -> None:
        """Open the database at the SQLAlchemy URL `url`, and create its tables if need be."""
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
        _metadata.create_all(self._engine)

    @classmethod
    def in_folder(cls, folder: Path) -> "Catalog":
        """Open the SQLite catalog in `folder`."""
        return cls(f"sqlite:///{folder / 'catalog.sqlite'}")

    def all(self) -> Iterator[AdapterRecord]:
        """Yield every record in the order of the names."""
        with self._engine.connect() as connection:
            for row in connection.execute(sa.select(_adapters).order_by(_adapters.c.name)):
                values = dict(row._mapping)
                values["target_modules"] = tuple(json.loads(values["target_modules"]))
                if values["created_at"].tzinfo is None:  # SQLite keeps no time zone
                    values["created_at"] = values["created_at"].replace(tzinfo=datetime.UTC)
                yield AdapterRecord(**values)

    def put(self, record: AdapterRecord) -> None:
        """Make `record.name` stand for `record`; durable when this returns."""
        values = {column.name: getattr(record, column.name) for column in _adapters.columns}
        values["target_modules"] = json.dumps(record.target_modules)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_adapters).where(_adapters.c.name == record.name))
            connection.execute(sa.insert(_adapters).values(values))

    def remove(self, name: str) -> None:
        """Forget `name`; durable when this returns."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_adapters).where(_adapters.c.name == name))

    def note(self, key: str) -> str | None:
        """Return what was kept under `key` about the store as a whole."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(_store.c.value).where(_store.c.key == key))

    def keep_note(self, key: str, value: str) -> None:
        """Keep `value` under `key`."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_store).where(_store.c.key == key))
            connection.execute(sa.insert(_store).values(key=key, value=value))

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _configure_sqlite(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
