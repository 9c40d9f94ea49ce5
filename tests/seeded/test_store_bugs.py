"""The tests of the tests: a store with a mistake in it does not pass."""

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from loramux.errors import LoramuxError
from loramux_server.store.registry import Registry
from tests.crash import test_faults
from tests.crash.journal import Journal
from tests.crash.recovery import Replay
from tests.crash.story import STORIES, Teller
from tests.seeded import store_bugs as bugs
from tests.server import test_catalog, test_quota, test_registry, test_streaming

Seed = Callable[[pytest.MonkeyPatch], None]


def journal(disk: Path, story: str) -> Journal:
    folder = disk / "recorded"
    journal = Journal(folder)
    teller = Teller(folder, journal)
    try:
        STORIES[story](teller)
    finally:
        teller.close()
    return journal


def kills(disk: Path, story: str) -> None:
    Replay(disk).kills(journal(disk, story))


def power_cuts(disk: Path, story: str) -> None:
    Replay(disk).power_cuts(journal(disk, story), 12)


@pytest.mark.parametrize(
    ("seed", "check", "story"),
    [
        (bugs.skip_file_sync, power_cuts, "upload"),
        (bugs.skip_folder_sync, power_cuts, "upload"),
        (bugs.rename_before_sync, power_cuts, "repeat"),
        (bugs.acknowledge_before_commit, kills, "upload"),
        (bugs.commit_before_rename, kills, "upload"),
        (bugs.recover_too_much, kills, "upload"),
        (bugs.leave_what_nobody_needs, kills, "upload"),
        (bugs.give_a_number_twice, kills, "delete"),
        (bugs.seal_what_came_last, kills, "resume"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_replay_finds(
    monkeypatch: pytest.MonkeyPatch, disk: Path, seed: Seed,
    check: Callable[[Path, str], None], story: str,
) -> None:  # fmt: skip
    seed(monkeypatch)
    with pytest.raises((AssertionError, OSError)):
        check(disk, story)


REGISTRY_CHECKS: dict[Seed, Callable[[Registry, Path], None]] = {
    bugs.forget_who_uses_bytes: (test_registry.test_a_lease_keeps_the_version_that_it_began_with),
    bugs.keep_a_lease_after_an_error: (
        test_registry.test_a_lease_is_given_back_once_also_by_a_call_that_fails
    ),
    bugs.give_a_lease_back_twice: (
        test_registry.test_a_lease_is_given_back_once_also_by_a_call_that_fails
    ),
    bugs.remember_what_a_reference_stood_for: (
        test_registry.test_other_content_is_the_next_version_unless_it_must_not_be
    ),
    bugs.resolve_a_name_twice: (
        lambda registry, _: (
            test_registry.test_a_lease_on_an_older_version_has_the_bytes_of_that_version(registry)
        )
    ),
    bugs.reuse_a_staging_name: (
        lambda registry, _: test_registry.test_uploads_that_come_at_once_keep_apart(registry)
    ),
}


@pytest.mark.parametrize("seed", REGISTRY_CHECKS, ids=lambda seed: seed.__name__)
def test_a_test_of_the_registry_finds(
    monkeypatch: pytest.MonkeyPatch, disk: Path, seed: Seed
) -> None:
    registry = Registry(disk / "store")
    with monkeypatch.context() as patch:
        seed(patch)
        with pytest.raises((AssertionError, LoramuxError, OSError)):
            REGISTRY_CHECKS[seed](registry, disk / "store")
    registry.close()


def test_a_test_of_the_catalog_finds_a_commit_without_sync(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    bugs.commit_without_sync(monkeypatch)
    with pytest.raises(AssertionError):
        test_catalog.test_the_database_loses_nothing_that_it_confirmed(disk)


def test_a_test_of_quotas_finds_room_that_is_given_back_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bugs.give_room_back_twice(monkeypatch)
    with pytest.raises(AssertionError):
        test_quota.test_what_is_on_its_way_counts_until_it_is_given_back()


async def test_a_test_of_requests_finds_the_base_in_place_of_an_unknown_adapter(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    bugs.take_the_base_for_an_unknown_adapter(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError)):
        await test_streaming.test_an_adapter_that_is_not_there_is_never_the_base(disk)


@pytest.mark.parametrize(
    ("seed", "check"),
    [
        (
            bugs.sync_again_after_an_error,
            lambda make: test_faults.test_a_fault_gives_the_right_status_and_leaves_nothing_partial(
                make, test_faults.upload, errno.EIO
            ),
        ),
        (
            bugs.trust_a_commit_that_failed,
            lambda make: test_faults.test_a_commit_whose_answer_is_lost_is_found_out(
                make, test_faults.upload
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_an_injected_fault_finds(
    monkeypatch: pytest.MonkeyPatch, disk: Path, seed: Seed,
    check: Callable[[Callable[[], Awaitable[test_faults.Case]]], Awaitable[None]],
) -> None:  # fmt: skip
    cases: list[test_faults.Case] = []

    async def make() -> test_faults.Case:
        cases.append(test_faults.Case(disk / str(len(cases))))
        await cases[-1].prepare()
        return cases[-1]

    seed(monkeypatch)
    with pytest.raises((AssertionError, LoramuxError)):
        await check(make)
    for case in cases:
        case.close()
