"""Seals of packages: who finds them out, where they are kept, and how they come to the engine."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy.exc
from blake3 import blake3

from loramux_server.lora.mix import mixed
from loramux_server.services.adapters.seals import FoundSeals
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from loramux_server.wire.adapter_source import Combination
from loramux_server.wire.messages import CacheStats, Report, Stats
from tests.support.fake import fake_engine
from tests.support.packages import publish, small_package

PACKAGE, OTHER = small_package(0), small_package(1)
DIGEST = f"sha256:{hashlib.sha256(PACKAGE).hexdigest()}"
STATS = Stats(
    running=0, waiting=0, used_blocks=0, preemptions=0, prompt_tokens=0, shared_tokens=0,
    device=CacheStats(), host=CacheStats(),
)  # fmt: skip
SEAL = f"blake3:{blake3(PACKAGE).hexdigest()}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def unsealed(registry: Registry) -> Registry:
    """A registry with a package of an earlier server under two names, and another."""
    for name, data in (("a", PACKAGE), ("team/b", PACKAGE), ("c", OTHER)):
        publish(registry, name, data)
    registry.keep_seals({DIGEST: ""})
    return registry


def seals_of(registry: Registry) -> dict[str, str]:
    return {record.full_name: record.seal for record in registry.records()}


def kept(registry: Registry) -> dict[str, str]:
    """Return what the next server will find."""
    return {record.full_name: record.seal for record in registry.catalog.versions()}


def test_what_is_stored_is_sealed_and_the_engine_gets_the_seal(registry: Registry) -> None:
    record = publish(registry, "a", PACKAGE)
    assert (record.digest, record.seal) == (DIGEST, SEAL)
    with registry.lease("a") as (_, source):
        assert source.seal == SEAL
    assert kept(registry) == {"a": SEAL}


def test_parts_of_a_mix_have_theirs(registry: Registry) -> None:
    for name, data in (("a", PACKAGE), ("b", OTHER)):
        publish(registry, name, data)
    sources = [registry.source_of(record) for record in registry.records()]
    mix = mixed(sources, [0.5, 0.5], Combination.CAT)
    assert mix is not None
    assert not mix.seal
    assert {part.digest: part.seal for part in mix.parts} == {s.digest: s.seal for s in sources}


def test_what_an_engine_finds_is_kept_for_all_who_have_it(unsealed: Registry) -> None:
    reported: list[object] = []
    unsealed.follow(lambda *change: reported.append(change))
    before = seals_of(unsealed)
    assert (before["a"], before["team/b"]) == ("", "")
    found = FoundSeals(unsealed)
    found.report(Report(stats=STATS))
    found.report(Report(stats=STATS, seals={DIGEST: SEAL, "sha256:gone": SEAL}))
    found.close()
    after = {**before, "a": SEAL, "team/b": SEAL}
    assert seals_of(unsealed) == kept(unsealed) == after
    assert reported == []  # nothing that anybody could see has changed
    found.report(Report(stats=STATS, seals={DIGEST: ""}))  # the engine ends after us
    assert seals_of(unsealed) == after


def test_what_cannot_be_kept_is_found_again(
    unsealed: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise sqlalchemy.exc.OperationalError("UPDATE", {}, Exception("disk I/O error"))

    monkeypatch.setattr(unsealed.catalog, "keep_seals", fail)
    found = FoundSeals(unsealed)
    found.report(Report(stats=STATS, seals={DIGEST: SEAL}))
    found.close()
    assert "cannot store the seals of 1 adapters: the store is not available" in caplog.text
    assert seals_of(unsealed)["a"] == ""


def test_who_has_the_content_already_seals_what_is_registered_anew(unsealed: Registry) -> None:
    uploads = Uploads(unsealed, expiry=100)
    adopted = uploads.adopt("new", DIGEST, must_not_exist=False)
    assert adopted is not None
    assert adopted[0].seal == SEAL
    unsealed.blobs.path(DIGEST).write_bytes(OTHER)
    assert uploads.adopt("newer", DIGEST, must_not_exist=False) is None
    uploads.close()
    # And what comes again is known by it, though it is no new version.
    assert publish(unsealed, "a", PACKAGE).version == 1
    assert seals_of(unsealed)["a"] == kept(unsealed)["a"] == SEAL


def test_an_upload_that_goes_on_is_sealed_as_a_whole(registry: Registry) -> None:
    half = len(PACKAGE) // 2
    uploads = Uploads(registry, expiry=100)
    upload = uploads.start("a", DIGEST, len(PACKAGE))
    uploads.write(upload, 0, PACKAGE[:half])
    uploads.close()
    again = Uploads(registry, expiry=100)
    upload = again.start("a", DIGEST, len(PACKAGE))
    again.write(upload, half, PACKAGE[half:])
    assert (upload.staged.digest, upload.staged.seal) == (DIGEST, SEAL)
    again.close()


def test_an_engine_reports_once_what_loads_found() -> None:
    engine, _, _, model = fake_engine(num_blocks=8, rows=8)
    model.seals = {DIGEST: SEAL}
    assert [engine.step().seals for _ in range(2)] == [{DIGEST: SEAL}, {}]
