"""The catalog: one that an earlier version wrote, and one that a later version did."""

import datetime
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
import sqlalchemy.exc

from loramux.errors import ResourceExhaustedError
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.catalog import Catalog, CatalogUrlError
from loramux_server.store.registry import Registry
from loramux_server.store.schema import FORMAT, NewerFormatError, metadata
from tests.support.packages import publish, small_package

FORMAT_1 = """
CREATE TABLE store (key VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY (key));
CREATE TABLE adapters (
    name VARCHAR(63) NOT NULL, digest VARCHAR(71) NOT NULL, size_bytes BIGINT NOT NULL,
    rank INTEGER NOT NULL, num_bytes BIGINT NOT NULL, item_bytes INTEGER NOT NULL,
    target_modules TEXT NOT NULL, base_model TEXT NOT NULL, source VARCHAR(16) NOT NULL,
    stamp TEXT NOT NULL, created_at DATETIME NOT NULL, PRIMARY KEY (name)
);
CREATE INDEX ix_adapters_digest ON adapters (digest);
INSERT INTO store VALUES ('base_fingerprint', 'sha256:base');
"""


def write_format_1(folder: Path, *rows: tuple[object, ...]) -> None:
    """Write a catalog as the version did that knew no versions of adapters."""
    connection = sqlite3.connect(folder / "catalog.sqlite")
    connection.executescript(FORMAT_1)
    connection.executemany(f"INSERT INTO adapters VALUES ({','.join('?' * 11)})", rows)
    connection.commit()
    connection.close()


def row(name: str, digest: str, source: str = "upload", stamp: str = "") -> tuple[object, ...]:
    return (
        name, digest, 100, 2, 56, 4, '["q_proj"]', "somebody/base", source, stamp,
        "2026-07-01 12:00:00.000000",
    )  # fmt: skip


def test_a_catalog_without_versions_becomes_version_1_of_each_name(tmp_path: Path) -> None:
    package = small_package(0)
    registry = Registry(tmp_path / "first")
    digest = publish(registry, "a", package).digest
    registry.close()
    # The same bytes under a catalog of the earlier format.
    folder = tmp_path / "first"
    for path in folder.glob("catalog.sqlite*"):
        path.unlink()
    write_format_1(folder, row("a", digest), row("b", digest, "directory", "1:2:3"))
    for _ in range(2):  # brought up to date, and opened as it is then
        registry = Registry(folder)
        assert registry.names() == ["a", "b"]
        found = registry.get("public/a:1")
        assert (found.digest, found.rank, found.target_modules) == (digest, 2, ("q_proj",))
        assert found.created_at == datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
        assert registry.get("b").stamp == "1:2:3"
        assert registry.catalog.note("base_fingerprint") == "sha256:base"
        with registry.lease("a") as (_, source):
            assert Path(source.path).read_bytes() == package
        registry.close()
    registry = Registry(folder)
    assert publish(registry, "a", small_package(1)).version == 2
    registry.close()
    connection = sqlite3.connect(folder / "catalog.sqlite")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "versions" in tables
    assert "adapters" not in tables  # nothing would keep it true


@pytest.mark.parametrize("form", ["2", "3", "4", "5", "6", "7"])
def test_a_catalog_of_an_earlier_format_gets_the_columns_that_it_lacks(
    tmp_path: Path, form: str
) -> None:
    registry = Registry(tmp_path)
    publish(registry, "a", small_package(0))
    registry.close()
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    lacking = {"3": ["edit_bytes", "method"], "4": ["expires_at", "origin"]}
    lacking |= {"5": ["vocab_size"], "6": ["invocation", "virtual_tokens", "has_cache"]}
    lacking |= {"7": ["task"], "8": ["seal"], "9": ["other_base"]}
    for column in (name for later, names in lacking.items() if later > form for name in names):
        connection.execute(f"ALTER TABLE versions DROP COLUMN {column}")
    connection.execute("UPDATE store SET value = ? WHERE key = 'format'", (form,))
    connection.commit()
    connection.close()
    for _ in range(2):
        registry = Registry(tmp_path)
        found = registry.get("a")
        assert (found.edit_bytes, found.method, found.invocation) == (0, "lora", ())
        assert (found.virtual_tokens, found.has_cache, found.task) == (0, False, "")
        assert (found.seal, found.other_base) == ("", "")
        assert registry.catalog.note("format") == str(FORMAT)
        registry.close()


def test_a_catalog_that_could_not_be_brought_up_to_date_is_as_it_was(tmp_path: Path) -> None:
    write_format_1(tmp_path, row("a", "sha256:00"))
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    connection.execute("CREATE TABLE versions (something TEXT)")
    connection.commit()
    with pytest.raises(Exception, match="versions"):
        Catalog.in_folder(tmp_path)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert {"adapters", "store"} <= tables
    assert "aliases" not in tables


def test_a_catalog_of_a_later_version_is_refused(tmp_path: Path) -> None:
    catalog = Catalog.in_folder(tmp_path)
    catalog.keep_note("format", str(FORMAT + 1))
    catalog.close()
    with pytest.raises(NewerFormatError, match=f"format {FORMAT + 1}.*up to {FORMAT}"):
        Catalog.in_folder(tmp_path)


def test_tables_are_those_of_their_format(tmp_path: Path) -> None:
    """Other servers have such tables on their disks: who changes one raises FORMAT, too."""
    Catalog.in_folder(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type DESC, name"
    found = [" ".join(sql.split()) + ";" for (sql,) in connection.execute(query)]
    connection.close()
    assert FORMAT == 9
    assert found == Path(__file__).with_name("catalog.sql").read_text().splitlines()


def test_every_moment_has_its_zone() -> None:
    # In SQLite it never has one, in PostgreSQL it would else be that of the session.
    moments = [
        (str(column), column.type.timezone)
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, sqlalchemy.DateTime)
    ]
    assert moments
    assert [column for column, has_zone in moments if not has_zone] == []


def test_the_database_loses_nothing_that_it_confirmed(tmp_path: Path) -> None:
    catalog = Catalog.in_folder(tmp_path)
    with catalog._engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous")
        ]
    catalog.close()
    assert found == ["wal", 2]


def test_what_an_unsure_catalog_turns_out_to_hold_is_reported(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for number, name in enumerate(("same", "changed", "gone")):
        publish(registry, name, small_package(number))
    reported: list[tuple[str, str]] = []
    registry.follow(lambda what, record: reported.append((what, record.name)))
    connection = sqlite3.connect(tmp_path / "catalog.sqlite")
    connection.execute("UPDATE versions SET is_pinned = 1 WHERE name = 'changed'")
    connection.execute("UPDATE versions SET name = 'came' WHERE name = 'gone'")
    connection.commit()
    connection.close()
    registry.catalog.needs_reload = True
    publish(registry, "new", small_package(3))
    assert reported == [
        ("removed", "gone"), ("added", "came"), ("updated", "changed"), ("added", "new"),
    ]  # fmt: skip
    assert registry.names() == ["came", "changed", "new", "same"]
    assert registry.get("changed").is_pinned
    stored = sum(record.size_bytes for record in registry.records())
    assert registry.quotas.taken("public") == (stored, 4)
    registry.close()


def test_nothing_changes_while_an_unsure_catalog_cannot_be_read(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    kept = publish(registry, "a", small_package(0))
    connection = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    connection.execute("ALTER TABLE versions RENAME TO elsewhere")
    registry.catalog.needs_reload = True
    for _ in range(2):  # and nobody waits for ever for who failed
        with pytest.raises(sqlalchemy.exc.OperationalError, match="no such table: versions"):
            registry.delete("a")
    assert registry.catalog.needs_reload
    assert registry.get("a") == kept
    connection.execute("ALTER TABLE elsewhere RENAME TO versions")
    connection.close()
    registry.delete("a")
    assert not registry.catalog.needs_reload
    assert registry.names() == []
    registry.close()


def test_a_database_that_is_full_is_known_to_be_unsure(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    kept = publish(registry, "a", small_package(0))
    with registry.catalog._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(1000):
            publish(registry, f"n{number}", small_package(1))

    with pytest.raises(ResourceExhaustedError, match="full") as caught, storage_errors():
        fill()
    assert caught.value.reason == "STORE_FULL"
    assert registry.catalog.needs_reload
    # Deleting makes the room that is needed, and what is there is known again then.
    num_kept = len(registry)
    registry.delete("n0")
    assert not registry.catalog.needs_reload
    assert (len(registry), registry.get("a")) == (num_kept - 1, kept)
    registry.close()


@pytest.mark.parametrize(("url", "says"), [
    ("nothing", "expected an SQLAlchemy URL"),
    ("nobody://host/name", "expected an SQLAlchemy URL"),
    ("sqlite:////nowhere/at/all.sqlite", "--catalog cannot be opened: unable to open"),
])  # fmt: skip
def test_a_catalog_that_is_nowhere_is_reported(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(CatalogUrlError, match=says):
        Catalog.at(url, tmp_path)
