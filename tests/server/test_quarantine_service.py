"""Quarantine as an operator sees it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy.exc

from loramux.errors import UnavailableError
from loramux.v1.quarantine_pb2 import ClearQuarantinedRequest, ListQuarantinedRequest
from loramux_server.engine_link.quarantine import MAX_NOT_FINITE, Quarantine
from loramux_server.observe.audit import Audit
from loramux_server.services.quarantine import QuarantineService
from loramux_server.store.catalog import Catalog
from loramux_server.store.registry import Registry
from tests.support.services import CONTEXT

DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


async def test_what_cannot_be_cleared_durably_stays_in_quarantine(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine = Quarantine(0)
    service = QuarantineService(quarantine, registry, Audit())
    for _ in range(MAX_NOT_FINITE):
        quarantine.was_not_finite(DIGEST)

    def away(*_: object) -> None:
        raise sqlalchemy.exc.OperationalError("", {}, Exception("the database is away"))

    request = ClearQuarantinedRequest(key=DIGEST)
    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "keep_note", away)
        with pytest.raises(UnavailableError):
            await service.ClearQuarantined(request, CONTEXT)
    listed = await service.ListQuarantined(ListQuarantinedRequest(), CONTEXT)
    assert [entry.key for entry in listed.entries] == [DIGEST]
    await service.ClearQuarantined(request, CONTEXT)
    assert not quarantine.entries
