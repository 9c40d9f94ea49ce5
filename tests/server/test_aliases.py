"""Aliases: compare and set, back again, and what is left after a crash."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from loramux_server.store.alias import Split
from loramux_server.store.reference import parse_reference
from loramux_server.store.registry import Registry
from tests.support.packages import publish, small_package

A = parse_reference("a", "name")
PACKAGES = [small_package(number) for number in range(3)]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    for package in PACKAGES:
        publish(registry, "a", package)
    yield registry
    registry.close()


def history(registry: Registry, alias: str = "stable") -> list[tuple[str, str, str]]:
    moves = registry.aliases.history(A, alias, before=None, limit=10)
    return [(str(move.before), str(move.after), move.moved_by) for move in moves]


def test_an_alias_moves_and_every_move_is_kept(registry: Registry, tmp_path: Path) -> None:
    registry.aliases.set(A, "stable", {1: 1}, by="ann", expected={})
    registry.aliases.set(A, "stable", {2: 1}, by="bob", expected={1: 1})
    registry.aliases.set(A, "stable", {2: 95, 3: 5}, by="bob")
    assert registry.get("a:stable").version == 2
    expected = [
        ("version 2", "{2: 95, 3: 5}", "bob"), ("version 1", "version 2", "bob"),
        ("no version", "version 1", "ann"),
    ]  # fmt: skip
    assert history(registry) == expected
    older = registry.aliases.history(A, "stable", before=2, limit=10)
    assert [str(move.after) for move in older] == ["version 1"]
    registry.close()
    again = Registry(tmp_path)
    assert again.aliases.of(("public", "a")) == {"stable": Split.of({2: 95, 3: 5})}
    assert history(again) == expected
    again.close()


def test_an_alias_that_is_set_to_where_it_is_has_not_moved(registry: Registry) -> None:
    for who in ("ann", "bob"):
        registry.aliases.set(A, "stable", {1: 1}, by=who)
    assert history(registry) == [("no version", "version 1", "ann")]


@pytest.mark.parametrize("expected", [{}, {2: 1}, {1: 1, 2: 1}])
def test_an_alias_that_is_not_where_it_is_expected_stays(
    registry: Registry, expected: dict[int, int]
) -> None:
    registry.aliases.set(A, "stable", {1: 1}, by="ann")
    with pytest.raises(AbortedError, match="points to version 1") as caught:
        registry.aliases.set(A, "stable", {3: 1}, by="bob", expected=expected)
    assert caught.value.reason == "ALIAS_MOVED"
    assert registry.get("a:stable").version == 1


def test_of_many_who_expect_the_same_one_moves_it(registry: Registry) -> None:
    registry.aliases.set(A, "stable", {1: 1}, by="me")
    won: list[int] = []

    def move(version: int) -> None:
        try:
            registry.aliases.set(A, "stable", {version: 1}, by="me", expected={1: 1})
            won.append(version)
        except AbortedError:
            pass

    threads = [threading.Thread(target=move, args=[2 + number % 2]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert registry.get("a:stable").version == won[0]


def test_a_rollback_undoes_the_last_move_and_is_one_itself(registry: Registry) -> None:
    registry.aliases.set(A, "stable", {1: 1}, by="me")
    with pytest.raises(FailedPreconditionError, match="nothing"):
        registry.aliases.roll_back(A, "stable", by="me")
    registry.aliases.set(A, "stable", {2: 90, 3: 10}, by="me")
    registry.aliases.set(A, "stable", {3: 1}, by="me")
    assert registry.aliases.roll_back(A, "stable", by="you") == Split.of({2: 90, 3: 10})
    assert history(registry)[0] == ("version 3", "{2: 90, 3: 10}", "you")
    assert registry.aliases.roll_back(A, "stable", by="you") == Split.of({3: 1})
    registry.delete("a:2")
    with pytest.raises(FailedPreconditionError, match="version 2, which was deleted"):
        registry.aliases.roll_back(A, "stable", by="me")


def test_a_version_of_an_alias_stays_until_the_alias_moves(registry: Registry) -> None:
    registry.aliases.set(A, "stable", {1: 95, 2: 5}, by="me")
    for version in (1, 2):
        with pytest.raises(FailedPreconditionError, match="'stable'") as caught:
            registry.delete(f"a:{version}")
        assert caught.value.reason == "VERSION_IN_USE"
    registry.aliases.set(A, "stable", {}, by="me")
    registry.delete("a:1")
    with pytest.raises(NotFoundError, match="'stable'"):
        registry.get("a:stable")


def test_aliases_go_with_their_adapter(registry: Registry) -> None:
    registry.aliases.set(A, "stable", {1: 1}, by="me")
    registry.delete("a")
    publish(registry, "a", PACKAGES[0])
    assert registry.aliases.of(("public", "a")) == {}
    assert history(registry) == []


@pytest.mark.parametrize(
    ("alias", "weights", "error", "field"),
    [
        ("3", {1: 1}, InvalidArgumentError, "alias"),
        ("stable", {1: 0}, InvalidArgumentError, "weights"),
        ("stable", {9: 1}, NotFoundError, "weights"),
        ("stable", {}, NotFoundError, "alias"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(
    registry: Registry, alias: str, weights: dict[int, int], error: type[Exception], field: str
) -> None:
    with pytest.raises(error) as caught:
        registry.aliases.set(A, alias, weights, by="me")
    assert getattr(caught.value, "field", None) == field


def test_a_key_keeps_its_version_while_the_weights_stay(registry: Registry) -> None:
    registry.aliases.set(A, "canary", {1: 50, 2: 50}, by="me")
    found = set()
    for key in map(str, range(50)):
        chosen = set()
        for _ in range(3):
            with registry.lease("a:canary", key=key) as (record, _source):
                chosen.add(record.version)
        assert len(chosen) == 1
        found |= chosen
    assert found == {1, 2}


def test_what_is_no_alias_cannot_be_rolled_back(registry: Registry) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.aliases.roll_back(A, "7", by="me")
    assert caught.value.field == "alias"


def test_an_alias_that_never_stood_for_anything_cannot_be_rolled_back(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        registry.aliases.roll_back(A, "stable", by="me")


def test_the_heaviest_version_stands_for_a_split() -> None:
    assert Split.of({1: 95, 2: 5}).heaviest == 1
    assert Split.of({1: 50, 2: 50}).heaviest == 2  # the newest of equal ones
