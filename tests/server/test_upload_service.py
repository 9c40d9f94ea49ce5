"""What becomes of an upload that fails in the end, and of many that race."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.errors import (
    AlreadyExistsError,
    LoramuxError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1.uploads_pb2 import FinishUploadResponse
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import id_of
from tests.support.packages import small_package
from tests.support.services import InstantEngine, Services

PACKAGES = [small_package(number) for number in range(4)]
DIGEST = f"sha256:{hashlib.sha256(PACKAGES[0]).hexdigest()}"


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


@pytest.mark.parametrize("error", [
    UnavailableError("the engine is away", reason="ENGINE_UNAVAILABLE"),
    ResourceExhaustedError("the queue is full", reason="QUEUE_FULL"),
], ids=["away", "busy"])  # fmt: skip
async def test_what_came_is_kept_while_the_engine_cannot_try_it(
    services: Services, engine: InstantEngine, registry: Registry, tmp_path: Path,
    error: LoramuxError,
) -> None:  # fmt: skip
    upload_id = await services.send("a", PACKAGES[0])
    engine.error = error
    for _ in range(3):
        with pytest.raises(type(error), match=str(error)):
            await services.finish(upload_id)
    assert registry.names() == []
    engine.error = None
    assert (await services.finish(upload_id)).adapter.version == 1
    registry.delete("a")
    assert files(tmp_path) == []


async def test_what_a_power_cut_damaged_comes_again(
    services: Services, registry: Registry, tmp_path: Path
) -> None:
    half = len(PACKAGES[0]) // 2
    begun = registry.blobs.resume(id_of("a", DIGEST, len(PACKAGES[0])))
    begun.write(bytes(half))  # zeros: the length was durable, and not the bytes
    begun.file.close()
    upload_id = await services.send("a", PACKAGES[0])
    with pytest.raises(NotFoundError, match="damaged") as caught:
        await services.finish(upload_id)
    assert caught.value.reason == "UPLOAD_NOT_FOUND"  # with which the client begins again
    assert files(tmp_path) == []
    upload_id = await services.send("a", PACKAGES[0])
    assert (await services.finish(upload_id)).adapter.version == 1


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
