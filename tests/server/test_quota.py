"""How much a tenant stores, and that no more comes than it may have."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.errors import AlreadyExistsError, ResourceExhaustedError
from loramux_server.store.quota import Quotas, Reservation, StorageLimits
from loramux_server.store.reference import Reference
from loramux_server.store.registry import Registry
from loramux_server.store.uploads import Uploads
from tests.support.packages import publish, small_package

PACKAGES = [small_package(number) for number in range(3)]
SIZE = len(PACKAGES[0])
assert {len(package) for package in PACKAGES} == {SIZE}


def limited(max_bytes: int = 0, max_adapters: int = 0) -> Quotas:
    """Quotas of tenant `a`; others have none."""
    limits = {"a": StorageLimits(max_bytes, max_adapters)}
    return Quotas(lambda tenant: limits.get(tenant, StorageLimits()))


def named(name: str) -> Reference:
    return Reference("a", name)


def test_what_is_on_its_way_counts_until_it_is_given_back() -> None:
    quotas = limited(max_bytes=100)
    first = quotas.reserve(named("one"), "sha256:1", 60)
    with pytest.raises(ResourceExhaustedError, match=r"uses 60 of 100 .* 41 more") as caught:
        quotas.reserve(named("two"), "sha256:2", 41)
    assert (caught.value.reason, caught.value.quota) == ("STORAGE_QUOTA_EXCEEDED", "tenant:a")
    second = quotas.reserve(named("two"), "sha256:2", 40)
    for _ in range(2):  # once, however often
        quotas.give_back(first)
        assert quotas.taken("a") == (40, 1)
    quotas.give_back(second)
    assert quotas.taken("a") == (0, 0)
    assert not quotas._accounts


def test_adapters_are_counted_by_name() -> None:
    quotas = limited(max_adapters=2)
    for name in ("one", "one", "two"):
        quotas.reserve(named(name), "", 1)
    with pytest.raises(ResourceExhaustedError, match=r"2 of 2 adapters.* 'three' would be"):
        quotas.reserve(named("three"), "", 1)
    quotas.reserve(named("two"), "", 1)
    quotas.reserve(Reference("b", "three"), "", 1)


def test_who_is_refused_leaves_nothing() -> None:
    quotas = limited(max_bytes=1)
    with pytest.raises(ResourceExhaustedError):
        quotas.reserve(named("one"), "sha256:1", 2)
    assert not quotas._accounts


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path, limited(max_bytes=2 * SIZE, max_adapters=2))
    yield registry
    registry.close()


@pytest.fixture
def uploads(registry: Registry) -> Iterator[Uploads]:
    uploads = Uploads(registry, expiry=100)
    yield uploads
    uploads.close()


def test_the_same_content_counts_once(registry: Registry, uploads: Uploads) -> None:
    digest = publish(registry, "a/one", PACKAGES[0]).digest
    uploads.adopt("a/two", digest, must_not_exist=False)
    assert registry.quotas.taken("a") == (SIZE, 2)
    with pytest.raises(ResourceExhaustedError, match="would be one more"):
        uploads.adopt("a/three", digest, must_not_exist=False)
    registry.delete("a/one")
    assert registry.quotas.taken("a") == (SIZE, 1)
    registry.delete("a/two")
    assert registry.quotas.taken("a") == (0, 0)


def test_a_restart_counts_what_is_there(registry: Registry, tmp_path: Path) -> None:
    for number in range(2):
        publish(registry, "a/one", PACKAGES[number])
    registry.close()
    again = Registry(tmp_path, limited(max_bytes=2 * SIZE))
    assert again.quotas.taken("a") == (2 * SIZE, 1)
    uploads = Uploads(again, expiry=100)
    with pytest.raises(ResourceExhaustedError):
        uploads.start("a/one", "sha256:" + "0" * 64, 1)
    assert list((tmp_path / "staging").iterdir()) == []
    uploads.close()
    again.close()


def test_what_was_reserved_becomes_what_is_stored(registry: Registry) -> None:
    room = registry.quotas.reserve(Reference("a", "one"), "", SIZE)
    registry.quotas.give_back(room)
    digest = publish(registry, "b/other", PACKAGES[0]).digest
    with registry.quotas.reserved(Reference("a", "one"), digest, SIZE):
        publish(registry, "a/one", PACKAGES[0])
        assert registry.quotas.taken("a") == (SIZE, 1)
    assert registry.quotas.taken("a") == (SIZE, 1)


def test_an_upload_has_its_room_until_its_file_is_gone(
    registry: Registry, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = uploads.start("a/one", "sha256:1", 2 * SIZE)
    for _ in range(2):  # who goes on with it needs no more
        assert uploads.start("a/one", "sha256:1", 2 * SIZE) is first
    monkeypatch.setattr("loramux_server.store.uploads.MAX_UPLOADS", 1)
    uploads.start("b/one", "sha256:2", SIZE)
    assert not uploads.has(first.id)  # put aside, and its file is kept
    assert registry.quotas.taken("a") == (2 * SIZE, 1)
    with pytest.raises(ResourceExhaustedError, match="bytes"):
        uploads.start("a/one", "sha256:3", 1)
    again = uploads.start("a/one", "sha256:1", 2 * SIZE)
    assert registry.quotas.taken("a") == (2 * SIZE, 1)
    uploads.end(again)
    assert registry.quotas.taken("a") == (0, 0)


def test_old_uploads_give_their_room_back(registry: Registry) -> None:
    uploads = Uploads(registry, expiry=0)
    uploads.start("a/one", "sha256:1", SIZE)
    uploads.expire()
    assert registry.quotas.taken("a") == (0, 0)


def test_an_upload_that_loses_gives_its_room_back(registry: Registry) -> None:
    publish(registry, "a/one", PACKAGES[0])
    with (
        pytest.raises(AlreadyExistsError),
        registry.quotas.reserved(Reference("a", "one"), "sha256:1", SIZE),
    ):
        raise AlreadyExistsError("other content")
    assert registry.quotas.taken("a") == (SIZE, 1)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3), st.integers(1, 40)),
        max_size=60,
    )
)
def test_no_more_is_taken_than_may_be(steps: list[tuple[bool, int, int, int]]) -> None:
    quotas = limited(max_bytes=100, max_adapters=3)
    held: list[Reservation] = []
    for takes, name, number, size in steps:
        if takes:
            with contextlib.suppress(ResourceExhaustedError):
                held.append(quotas.reserve(named(f"n{name}"), f"sha256:{number}", size))
        elif held:
            quotas.give_back(held.pop(size % len(held)))
        num_bytes, num_adapters = quotas.taken("a")
        assert num_bytes == sum(room.num_bytes for room in held) <= 100
        assert num_adapters == len({room.reference.name for room in held}) <= 3
