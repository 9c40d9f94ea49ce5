"""What becomes of an upload that fails in the end, and of many that race."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux.errors import AlreadyExistsError, LoramuxError, NotFoundError, UnavailableError
from loramux.v1.uploads_pb2 import FinishUploadResponse
from loramux_server.store.registry import Registry
from tests.support.packages import small_package
from tests.support.services import InstantEngine, Services

PACKAGES = [small_package(number) for number in range(4)]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def engine() -> InstantEngine:
    return InstantEngine()


@pytest.fixture
def services(registry: Registry, engine: InstantEngine) -> Iterator[Services]:
    services = Services(registry, engine)
    yield services
    services.uploads.close()


def files(folder: Path) -> list[Path]:
    """Return what is staged and what is stored."""
    return [*(folder / "staging").iterdir(), *(folder / "blobs").glob("*/*")]


async def test_what_came_is_kept_while_the_engine_is_away(
    services: Services, engine: InstantEngine, registry: Registry, tmp_path: Path
) -> None:
    upload_id = await services.send("a", PACKAGES[0])
    engine.error = UnavailableError("the engine is away", reason="ENGINE_UNAVAILABLE")
    for _ in range(3):
        with pytest.raises(UnavailableError, match="away"):
            await services.finish(upload_id)
    assert registry.names() == []
    engine.error = None
    assert (await services.finish(upload_id)).adapter.version == 1
    registry.delete("a")
    assert files(tmp_path) == []


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(code, "injected")

    return fail


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_fault_of_the_disk_ends_the_upload_and_nothing_else(
    services: Services, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: str, code: int,
) -> None:  # fmt: skip
    upload_id = await services.send("a", PACKAGES[0])
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", failing(code))
        else:
            patch.setattr(Path, "hardlink_to", failing(code))
        with pytest.raises(LoramuxError) as caught:
            await services.finish(upload_id)
    assert caught.value.reason in ("STORE_FULL", "STORE_UNAVAILABLE")
    # A sync that failed is never tried again: the bytes have to come anew.
    assert (registry.names(), files(tmp_path)) == ([], [])
    again = await services.send("a", PACKAGES[0])
    assert (await services.finish(again)).adapter.version == 1


async def test_a_fault_of_the_catalog_leaves_nothing_partial(
    services: Services, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await services.send("a", PACKAGES[0])
    with monkeypatch.context() as patch:
        patch.setattr(registry.catalog, "add", failing(errno.EIO))
        with pytest.raises(UnavailableError):
            await services.finish(upload_id)
    assert (registry.names(), files(tmp_path)) == ([], [])


async def test_of_many_who_want_a_new_name_one_gets_it(
    services: Services, registry: Registry
) -> None:
    async def upload(number: int) -> FinishUploadResponse | None:
        package = PACKAGES[number % len(PACKAGES)]
        try:
            upload_id = await services.send("a", package, must_not_exist=True)
            return await services.finish(upload_id)
        except (AlreadyExistsError, NotFoundError):  # another one lost with this very content
            return None

    ids = [await services.send("a", package, must_not_exist=True) for package in PACKAGES]
    assert len(set(ids)) == len(PACKAGES)
    results = await asyncio.gather(*(upload(number) for number in range(64)))
    won = {result.adapter.digest for result in results if result}
    assert len(won) == 1
    assert [record.digest for record in registry.records(all_versions=True)] == [*won]
