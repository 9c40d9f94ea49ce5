"""Which adapters have metric series of their own."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.metrics.top_labels import BASE, NONE, OTHER, TopLabels


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def labels(ended: list[str]) -> TopLabels:
    return TopLabels(2, ended.append)


def test_the_base_model_has_a_label_that_takes_no_room(labels: TopLabels) -> None:
    labels.count("")
    labels.count("a")
    labels.count("b")
    assert [labels.label(name) for name in ("", "a", "b")] == [BASE, "a", "b"]


def test_what_was_never_counted_is_other(labels: TopLabels) -> None:
    assert labels.label("a") == OTHER


def test_an_idle_adapter_makes_room_for_one_twice_as_busy(
    labels: TopLabels, ended: list[str]
) -> None:
    for name in ("a", "a", "b", "b", "b"):
        labels.count(name)
    for _ in range(3):
        labels.count("c")
    assert (labels.label("c"), ended) == (OTHER, [])
    labels.count("c")
    assert (labels.label("c"), ended) == ("c", ["a"])
    assert (labels.label("a"), labels.label("b")) == (OTHER, "b")


def test_adapters_of_equal_traffic_do_not_replace_each_other(ended: list[str]) -> None:
    labels = TopLabels(64, ended.append)
    for _ in range(50):
        for number in range(100):
            labels.count(f"a{number}")
    assert ended == []


def test_a_forgotten_adapter_ends_and_starts_again_from_nothing(
    labels: TopLabels, ended: list[str]
) -> None:
    for name in ("a", "a", "a", "b"):
        labels.count(name)
    labels.forget("a")
    labels.forget("unknown")
    assert (ended, labels.label("a")) == (["a"], OTHER)
    labels.count("c")
    labels.count("a")
    assert labels.label("a") == OTHER


def test_yesterdays_traffic_weighs_less(labels: TopLabels) -> None:
    for _ in range(4000):
        labels.count("a")
        labels.count("b")
    for _ in range(7000):
        labels.count("c")
    assert labels.label("c") == "c"


@pytest.mark.parametrize("name", [BASE, OTHER, NONE])
def test_an_adapter_cannot_take_the_label_of_something_else(
    labels: TopLabels, ended: list[str], name: str
) -> None:
    for _ in range(100):
        labels.count(name)
    assert labels.label(name) == OTHER
    labels.forget(name)
    assert ended == []


names = st.sampled_from(["", *"abcdef"])


@given(st.lists(st.tuples(st.booleans(), names), max_size=200), st.integers(1, 4))
def test_never_more_labels_than_allowed_and_each_ends_as_often_as_it_begins(
    events: list[tuple[bool, str]], limit: int
) -> None:
    ended: Counter[str] = Counter()
    labels = TopLabels(limit, lambda name: ended.update([name]))
    begun: Counter[str] = Counter()
    before: set[str] = set()
    for is_request, name in events:
        (labels.count if is_request else labels.forget)(name)
        own = {name for name in "abcdef" if labels.label(name) == name}
        assert len(own) <= limit
        begun.update(own - before)
        before = own
    assert begun - ended == Counter(before)
