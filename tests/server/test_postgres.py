"""The catalog in a PostgreSQL, instead of SQLite: the same behaviour, and what happens when it is
away.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from loramux.errors import UnavailableError
from loramux_server.config import ConfigError, make_config
from loramux_server.opening import open_registry
from loramux_server.store.catalog import Catalog
from loramux_server.store.registry import Registry
from loramux_server.store.schema import FORMAT
from tests.adapters.files import CONFIG, package
from tests.crash.registry_model import PACKAGES, RegistryModel, found_in
from tests.crash.seen import Op
from tests.crash.story import STORIES, Teller
from tests.support.packages import publish
from tests.support.postgres import Postgres, binaries
from tests.support.server import RunningServer
from tests.support.services import InstantEngine, Services


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    programs = binaries()
    if programs is None:
        pytest.skip("the programs of PostgreSQL are not installed")
    postgres = Postgres(programs).start()
    yield postgres
    postgres.close()


class Nobody:
    """Listens to nothing."""

    def before(self, op: Op) -> None:
        pass

    def after(self, op: Op) -> None:
        pass

    def change(self, after: RegistryModel) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.mark.parametrize("name", STORIES)
def test_every_story_ends_as_callers_were_answered(
    postgres: Postgres, tmp_path: Path, name: str
) -> None:
    url = postgres.make_database()
    teller = Teller(tmp_path / "store", Nobody(), url)
    STORIES[name](teller)
    assert found_in(teller.registry) == teller.model
    teller.close()
    registry = Registry(tmp_path / "store", catalog=lambda _: Catalog(url))
    assert found_in(registry) == teller.model
    registry.close()
    assert not (tmp_path / "store" / "catalog.sqlite").exists()


async def test_a_database_that_is_away_is_waited_for(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.make_database()
    registry = Registry(tmp_path / "store", catalog=lambda _: Catalog(url))
    services = Services(registry, InstantEngine())
    first = publish(registry, "a", PACKAGES[0])
    upload_id = await services.send("a", PACKAGES[1])
    postgres.stop()
    try:
        with pytest.raises(UnavailableError) as caught:
            await services.finish(upload_id)
        assert (caught.value.reason, str(tmp_path) in str(caught.value)) == (
            "STORE_UNAVAILABLE", False,
        )  # fmt: skip
        # What is registered goes on without it.
        with registry.lease("a") as (record, _):
            assert record == first
    finally:
        postgres.start()
    upload_id = await services.send("a", PACKAGES[1])
    assert (await services.finish(upload_id)).adapter.version == 2
    services.uploads.close()
    registry.close()
    again = Registry(tmp_path / "store", catalog=lambda _: Catalog(url))
    assert [record.version for record in again.versions("a")] == [1, 2]
    again.close()


def test_a_database_of_an_earlier_format_gets_the_room_that_it_lacks(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.make_database()
    Catalog(url).close()
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("ALTER TABLE versions ALTER COLUMN task TYPE VARCHAR(16)")
        )
        connection.execute(sqlalchemy.text("UPDATE store SET value = '7' WHERE key = 'format'"))
    engine.dispose()
    for _ in range(2):
        registry = Registry(tmp_path / "store", catalog=lambda _: Catalog(url))
        publish(registry, "a", package(config=CONFIG | {"task_type": "FEATURE_EXTRACTION"}))
        assert registry.get("a").task == "FEATURE_EXTRACTION"
        assert registry.catalog.note("format") == str(FORMAT)
        registry.close()


@pytest.mark.parametrize(
    ("url", "message", "code"),
    [
        ("nonsense", "could not parse", 78),
        ("nosuch://localhost/x", "[postgres]", 78),
        # A service manager may start it again, when the database is there.
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "cannot be opened", 75),
    ],
)
def test_a_catalog_that_cannot_be_opened_is_one_clear_line(
    tmp_path: Path, tiny_base: Path, url: str, message: str, code: int
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "loramux.cli", "serve", "--model", str(tiny_base),
            "--store", str(tmp_path / "store"), "--catalog", url,
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert message in done.stderr.lower()
    assert "secret" not in done.stderr


def test_a_catalog_is_kept_for_one_store(postgres: Postgres, tmp_path: Path) -> None:
    config = make_config({"model": "", "catalog": postgres.make_database()})
    for _ in range(2):
        open_registry(tmp_path / "first", config).close()
    for _ in range(2):  # and it lets go of what it opened
        with pytest.raises(ConfigError, match="belongs to another store"):
            open_registry(tmp_path / "second", config)
    (tmp_path / "first").rename(tmp_path / "moved")
    open_registry(tmp_path / "moved", config).close()


def test_a_server_keeps_its_catalog_there(
    postgres: Postgres, tmp_path: Path, tiny_base: Path, tiny_adapters: Path
) -> None:
    url = postgres.make_database()
    server = RunningServer(tmp_path, tiny_base, "--catalog", url)
    with server, server.client() as client:
        made = client.adapters.upload("kept", tiny_adapters / "small")
        answer = client.generate("hi", adapter="kept", max_tokens=1)
        assert answer.adapter is not None
        assert answer.adapter.digest == made.digest
    catalog = Catalog(url)
    assert [record.digest for record in catalog.versions()] == [made.digest]
    catalog.close()
    assert not (tmp_path / "store" / "catalog.sqlite").exists()
