"""Pins of the registry and of the engine, where calls are cancelled or adapters deleted."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loramux.errors import NotFoundError, UnavailableError
from loramux.v1.residency_pb2 import PinAdapterRequest
from loramux_server.services.adapters.pins import Pins
from loramux_server.services.adapters.residency import ResidencyService
from loramux_server.store.catalog import Catalog
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from tests.support.bases import ROOMY, SMALL
from tests.support.packages import publish, small_package
from tests.support.services import CONTEXT
from tests.support.slow import slow


class Pinned:
    """Pins of a real registry, and what the engine has of them."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.in_engine: set[str] = set()
        engine = SimpleNamespace(
            pin=lambda source: self.in_engine.add(source.digest), unpin=self.in_engine.remove
        )
        self.pins = Pins(registry, cast(Any, engine), replace(ROOMY, layers=SMALL))

    @property
    def in_registry(self) -> set[str]:
        return {record.digest for record in self.registry.records() if record.is_pinned}


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Pinned]:
    registry = Registry(tmp_path)
    publish(registry, "a", small_package(0))
    yield Pinned(registry)
    registry.close()


async def test_a_cancelled_call_leaves_registry_and_engine_in_agreement(
    pinned: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change, count in ((pinned.pins.pin, 1), (pinned.pins.unpin, 0)):
        with slow(monkeypatch, Catalog, "update") as has_begun:
            task = asyncio.create_task(change("a"))
            assert await asyncio.to_thread(has_begun.wait, 60)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pinned.in_engine == pinned.in_registry
        assert len(pinned.in_engine) == count


async def test_what_is_deleted_while_it_is_pinned_is_not_pinned(
    pinned: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = pinned.registry.change

    def and_delete(*arguments: Any) -> AdapterRecord:
        record = change(*arguments)
        pinned.registry.delete("a")
        return record

    monkeypatch.setattr(pinned.registry, "change", and_delete)
    with pytest.raises(NotFoundError, match="'a:1' is not registered"):
        await pinned.pins.pin("a")
    assert not pinned.in_engine


@pytest.mark.parametrize("was_pinned", [False, True])
async def test_a_pin_that_cannot_be_loaded_is_as_it_was_before(
    pinned: Pinned, was_pinned: bool
) -> None:
    async def away(record: AdapterRecord) -> None:
        raise UnavailableError("the engine is away")

    intake = SimpleNamespace(registry=pinned.registry, load=away)
    service = ResidencyService(
        intake=cast(Any, intake), pins=pinned.pins, descriptions=cast(Any, None)
    )
    if was_pinned:
        await pinned.pins.pin("a")
    with pytest.raises(UnavailableError, match="away"):
        await service.PinAdapter(PinAdapterRequest(name="a"), CONTEXT)
    assert len(pinned.in_registry) == was_pinned
    assert pinned.in_engine == pinned.in_registry
