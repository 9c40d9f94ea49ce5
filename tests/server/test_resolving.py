"""What callers can make the server fetch, and what comes of it beside other changes."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loramux.errors import (
    DeadlineExceededError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from loramux.v1 import generation_pb2
from loramux_adapters import read_package
from loramux_server.access.caller import Caller, Role, acting
from loramux_server.access.rules import RULES
from loramux_server.observe.audit import Audit
from loramux_server.services.adapters.fetch_shares import MAX_WAITING_BYTES, Shares
from loramux_server.services.adapters.resolving import Resolver
from loramux_server.sources.local import LocalFiles
from loramux_server.sources.policy import Opening
from loramux_server.sources.templates import Templates
from loramux_server.store.reference import Reference
from loramux_server.store.registry import Registry
from tests.server.test_imports_service import Held, imports
from tests.support.packages import small_package
from tests.support.polling import eventually

RULE = RULES["loramux.v1.GenerationService.Generate"]


class Sources(Templates):
    """One source for all adapters; counts who asks for which."""

    def __init__(self, source: Callable[[], Held]) -> None:
        super().__init__(())
        self._source = source
        self.asked: list[str] = []

    def openings(self, adapter: Reference) -> Sequence[Opening]:  # type: ignore[override]
        def opening(is_cancelled: Callable[[], bool]) -> Held:
            self.asked.append(str(adapter))
            return self._source()

        return [opening]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "store")
    yield registry
    registry.close()


@pytest.fixture
def held() -> Iterator[Held]:
    """A source that waits; at the end of a test it does so no more."""
    source = Held()
    yield source
    source.may_end.set()


def resolver(registry: Registry, sources: Templates, ttl: float = 0.0) -> Resolver:
    return Resolver(
        sources, imports(registry, Held()), registry, Audit(), default_timeout=30, ttl=ttl
    )


def asking(
    resolver: Resolver, *names: str, tenant: str = "acme", seconds: float = 30.0
) -> "asyncio.Task[None]":
    """Begin to bring what a request of a caller of `tenant` names."""
    request = generation_pb2.GenerateRequest()
    if len(names) == 1:
        request.adapter = names[0]
    else:
        for name in names:
            request.adapters.add(adapter=name)
    context = cast(Any, SimpleNamespace(time_remaining=lambda: seconds))
    with acting(Caller(tenant, Role.USER, "k")):
        return asyncio.create_task(resolver.bring(request, RULE, context))


def upload(registry: Registry, name: str, content: bytes) -> None:
    staged = registry.stage()
    staged.write(content)
    record = registry.publish(name, staged, read_package(staged.file, staged.size))
    registry.register(record)
    registry.discard(staged)


async def until(condition: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(eventually, condition)


@pytest.mark.parametrize("number", [0, 1], ids=["the same", "another"])
async def test_an_upload_during_a_fetch_is_what_the_name_means(
    registry: Registry, held: Held, number: int
) -> None:
    asked = asking(resolver(registry, Sources(lambda: held), ttl=60), "acme/a")
    await until(held.has_begun.is_set)
    upload(registry, "acme/a", small_package(number))
    before = registry.versions("acme/a")
    held.may_end.set()
    await asked
    assert registry.versions("acme/a") == before
    assert before[0].expires_at is None


async def test_one_tenant_does_not_take_all_turns(registry: Registry, held: Held) -> None:
    sources = Sources(lambda: held)
    fetching = resolver(registry, sources)
    tasks = [asking(fetching, f"acme/a{i}") for i in range(6)]
    await until(lambda: len(sources.asked) >= 3)
    tasks.append(asking(fetching, "other/b", tenant="other"))
    await until(lambda: "other/b" in sources.asked)
    assert len(sources.asked) == 4
    held.may_end.set()
    await asyncio.gather(*tasks)
    assert len(registry) == 7


async def test_more_adapters_than_a_request_may_name_are_not_fetched(registry: Registry) -> None:
    source = Held()
    source.may_end.set()
    sources = Sources(lambda: source)
    fetching = resolver(registry, sources)
    await asking(fetching, *(f"acme/a{i}" for i in range(5)))
    assert sources.asked == []
    await asking(fetching, *(f"acme/a{i}" for i in range(4)))
    assert len(sources.asked) == 4


async def test_a_call_waits_no_longer_than_it_may(registry: Registry, held: Held) -> None:
    fetching = resolver(registry, Sources(lambda: held))
    with pytest.raises(DeadlineExceededError):
        await asking(fetching, "acme/a", seconds=0.2)
    held.may_end.set()
    await asking(fetching, "acme/a")
    assert len(registry.versions("acme/a")) == 1


async def test_who_waits_when_the_server_ends_gets_an_error(registry: Registry, held: Held) -> None:
    fetching = resolver(registry, Sources(lambda: held))
    asked = asking(fetching, "acme/a")
    await until(held.has_begun.is_set)
    threading.Timer(0.1, held.may_end.set).start()
    await fetching.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await asked
    assert not registry.versions("acme/a")


def test_a_tenant_has_half_of_what_may_wait() -> None:
    shares, half = Shares(), MAX_WAITING_BYTES // 2
    with shares.waiting("acme", half, "adapter"):
        with (
            pytest.raises(ResourceExhaustedError, match="adapter: too many calls"),
            shares.waiting("acme", 1, "adapter"),
        ):
            pass
        with shares.waiting("other", MAX_WAITING_BYTES, "adapter"):  # one always may
            pass
    for i in range(200):
        with suppress(ResourceExhaustedError):
            shares.begin("acme", "adapter")
        if i < 10:
            shares.begin("other", "adapter")
    with pytest.raises(ResourceExhaustedError, match="adapter: 128 adapters are being fetched"):
        shares.begin("acme", "adapter")
    for _ in range(10):
        shares.end("other")
    assert shares._shares.keys() == {"acme"}
    for _ in range(128):
        shares.begin("other", "adapter")
    with pytest.raises(ResourceExhaustedError, match="adapter: 256 adapters are being fetched;"):
        shares.begin("third", "adapter")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(NotFoundError, match=r"adapter_model\.safetensors is not a file"):
        LocalFiles(tmp_path)


def test_a_name_that_a_source_cannot_have_is_not_there() -> None:
    templates = Templates(["oci://registry.example/x:a-{tenant}-{name}", "/mnt/{name}"])
    assert len(templates.openings(Reference("a", "b"))) == 2
    assert len(templates.openings(Reference("a" * 63, "b" * 63))) == 1
