"""What an upload leaves behind that ends between its bytes and its name."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loramux.errors import UnavailableError
from loramux.v1.adapters_pb2 import UploadAdapterRequest
from loramux_server.metrics.series import Metrics
from loramux_server.services.adapters.changes import Changes
from loramux_server.services.adapters.chunks import Chunks
from loramux_server.services.adapters.descriptions import Descriptions
from loramux_server.services.adapters.imports import Imports
from loramux_server.services.adapters.intake import Intake
from loramux_server.services.adapters.service import AdapterService
from loramux_server.sources.policy import Sources
from loramux_server.statuses import Statuses
from loramux_server.store.blobs import Blobs
from loramux_server.store.registry import Registry
from tests.support.bases import ROOMY, SMALL
from tests.support.packages import small_package
from tests.support.slow import slow
from tests.support.wire import chunks, upload_header

PACKAGE = small_package(0)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


def unavailable(*_: object, **__: object) -> int:
    raise UnavailableError("the engine is away", reason="ENGINE_UNAVAILABLE")


def service(registry: Registry, submit: Callable[..., int] = unavailable) -> AdapterService:
    """A service whose engine has no more than `submit`."""
    engine = SimpleNamespace(submit=submit, cancel=lambda request_id: None)
    model = SimpleNamespace(
        vocab_size=100, context_length=100, source_length=0, writing=None, is_encoder=False
    )
    intake = Intake(
        registry=registry,
        engine=cast(Any, engine),
        model=cast(Any, model),
        base=replace(ROOMY, layers=SMALL),
        max_upload_bytes=1 << 20,
    )
    statuses = Statuses()
    descriptions = Descriptions(registry, statuses, cast(Any, model))
    return AdapterService(
        intake=intake,
        imports=Imports(intake, Sources(), 1 << 20),
        descriptions=descriptions,
        statuses=statuses,
        metrics=Metrics(),
        chunks=Chunks(30),
        changes=Changes(descriptions),
    )


async def messages() -> AsyncIterator[UploadAdapterRequest]:
    for message in (upload_header("a", PACKAGE), *chunks(PACKAGE)):
        yield message


def files(folder: Path) -> list[Path]:
    """Return what is staged and what is stored."""
    return [*(folder / "staging").iterdir(), *(folder / "blobs").glob("*/*")]


async def test_an_upload_that_cannot_be_tried_leaves_nothing(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match="away"):
        await service(registry).UploadAdapter(messages(), cast(Any, None))
    assert (files(tmp_path), registry.names()) == ([], [])


async def test_an_upload_cancelled_while_it_is_tried_leaves_nothing(
    registry: Registry, tmp_path: Path
) -> None:
    is_tried = asyncio.Event()

    def submit(*_: object, **__: object) -> int:
        is_tried.set()
        return 1

    upload = service(registry, submit).UploadAdapter(messages(), cast(Any, None))
    task = asyncio.create_task(upload)
    await is_tried.wait()
    assert len(files(tmp_path)) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (files(tmp_path), registry.names()) == ([], [])


async def test_an_upload_cancelled_while_it_is_stored_leaves_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow(monkeypatch, Blobs, "publish") as has_begun:
        upload = service(registry).UploadAdapter(messages(), cast(Any, None))
        task = asyncio.create_task(upload)
        assert await asyncio.to_thread(has_begun.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (files(tmp_path), registry.names()) == ([], [])
