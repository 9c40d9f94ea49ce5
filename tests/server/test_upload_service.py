"""What becomes of an upload that fails in the end, and of many that race."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loramux.errors import AlreadyExistsError, LoramuxError, NotFoundError, UnavailableError
from loramux.v1.adapters_pb2 import UploadHeader
from loramux.v1.uploads_pb2 import (
    FinishUploadRequest,
    FinishUploadResponse,
    SendChunksRequest,
    StartUploadRequest,
)
from loramux_server.engine.messages import Token
from loramux_server.engine_client import Mailbox
from loramux_server.metrics import Metrics
from loramux_server.services.chunks import Chunks
from loramux_server.services.descriptions import Descriptions
from loramux_server.services.intake import Intake
from loramux_server.services.uploads import UploadService
from loramux_server.statuses import Statuses
from loramux_server.store.check import ServedBase
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from tests.support.packages import small_package

PACKAGES = [small_package(number) for number in range(4)]
CONTEXT = cast(Any, None)


class Engine:
    """Makes a token of every request, or raises an error."""

    def __init__(self) -> None:
        self.error: LoramuxError | None = None

    def submit(self, mailbox: Mailbox, index: int, *_: object) -> int:
        if self.error:
            raise self.error
        mailbox.put(index, Token(1, 1))
        return 1

    def cancel(self, request_id: int) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def service(registry: Registry, engine: Engine) -> Iterator[UploadService]:
    intake = Intake(
        registry=registry,
        engine=cast(Any, engine),
        model=cast(Any, SimpleNamespace(vocab_size=100, context_length=100)),
        base=ServedBase({"model.layers.0.self_attn.q_proj": (3, 4)}, 64, 1 << 20),
        max_upload_bytes=1 << 20,
    )
    service = UploadService(
        intake=intake,
        uploads=Uploads(registry, 100),
        descriptions=Descriptions(registry, Statuses()),
        metrics=Metrics(),
        chunks=Chunks(30),
    )
    yield service
    service.close()


async def send(
    service: UploadService, name: str, package: bytes, *, must_not_exist: bool = False
) -> str:
    """Bring all bytes of `package` and return the id of the upload; empty if none is needed."""
    header = UploadHeader(
        name=name,
        size_bytes=len(package),
        sha256=hashlib.sha256(package).hexdigest(),
        must_not_exist=must_not_exist,
    )
    started = await service.StartUpload(StartUploadRequest(header=header), CONTEXT)
    if started.HasField("adapter"):
        return ""

    async def chunks() -> AsyncIterator[SendChunksRequest]:
        yield SendChunksRequest(
            upload_id=started.upload_id,
            offset=started.committed_bytes,
            chunk=package[started.committed_bytes :],
        )

    if started.committed_bytes < len(package):
        await service.SendChunks(chunks(), CONTEXT)
    return started.upload_id


def finish(service: UploadService, upload_id: str) -> Any:
    return service.FinishUpload(FinishUploadRequest(upload_id=upload_id), CONTEXT)


def files(folder: Path) -> list[Path]:
    """Return what is staged and what is stored."""
    return [*(folder / "staging").iterdir(), *(folder / "blobs").glob("*/*")]


async def test_what_came_is_kept_while_the_engine_is_away(
    service: UploadService, engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    upload_id = await send(service, "a", PACKAGES[0])
    engine.error = UnavailableError("the engine is away", reason="ENGINE_UNAVAILABLE")
    for _ in range(3):
        with pytest.raises(UnavailableError, match="away"):
            await finish(service, upload_id)
    assert registry.names() == []
    engine.error = None
    assert (await finish(service, upload_id)).adapter.version == 1
    registry.delete("a")
    assert files(tmp_path) == []


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(code, "injected")

    return fail


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_fault_of_the_disk_ends_the_upload_and_nothing_else(
    service: UploadService, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call: str, code: int,
) -> None:  # fmt: skip
    upload_id = await send(service, "a", PACKAGES[0])
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", failing(code))
        else:
            patch.setattr(Path, "hardlink_to", failing(code))
        with pytest.raises(LoramuxError) as caught:
            await finish(service, upload_id)
    assert caught.value.reason in ("STORE_FULL", "STORE_UNAVAILABLE")
    # A sync that failed is never tried again: the bytes have to come anew.
    assert (registry.names(), files(tmp_path)) == ([], [])
    again = await send(service, "a", PACKAGES[0])
    assert (await finish(service, again)).adapter.version == 1


async def test_a_fault_of_the_catalog_leaves_nothing_partial(
    service: UploadService, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await send(service, "a", PACKAGES[0])
    with monkeypatch.context() as patch:
        patch.setattr(registry.catalog, "add", failing(errno.EIO))
        with pytest.raises(UnavailableError):
            await finish(service, upload_id)
    assert (registry.names(), files(tmp_path)) == ([], [])


async def test_of_many_who_want_a_new_name_one_gets_it(
    service: UploadService, registry: Registry
) -> None:
    async def upload(number: int) -> FinishUploadResponse | None:
        package = PACKAGES[number % len(PACKAGES)]
        try:
            upload_id = await send(service, "a", package, must_not_exist=True)
            return cast(FinishUploadResponse, await finish(service, upload_id))
        except (AlreadyExistsError, NotFoundError):  # another one lost with this very content
            return None

    ids = [await send(service, "a", package, must_not_exist=True) for package in PACKAGES]
    assert len(set(ids)) == len(PACKAGES)
    results = await asyncio.gather(*(upload(number) for number in range(64)))
    won = {result.adapter.digest for result in results if result}
    assert len(won) == 1
    assert [record.digest for record in registry.records(all_versions=True)] == [*won]
