"""Places at which tokens came before."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.engine.ngrams import BORDER, MOST_RUNS, SIZES, Ngrams, Place

TEXTS = st.lists(st.integers(0, 3), max_size=200)


def latest(tokens: list[int], last: list[int]) -> dict[int, int]:
    """Return the latest place after the end of `last`, by how many of its tokens it has."""
    found = {}
    for size in SIZES:
        places = range(len(tokens) - 1, size - 1, -1)
        wanted = last[-size:] if len(last) >= size else None
        found[size] = next((i for i in places if tokens[i - size : i] == wanted), 0)
    return found


@given(TEXTS, TEXTS, st.lists(st.integers(0, 3), min_size=1, max_size=SIZES[0]))
def test_what_is_found_is_the_latest(first: list[int], rest: list[int], last: list[int]) -> None:
    subject = Ngrams(first)
    for token in rest:
        subject.append(token)
    assert len(subject) == len(first) + len(rest)
    found, wanted = subject.find(last), latest(first + rest, last)
    # Two may share a slot; then the one that came before is forgotten, but none is mixed up.
    if found:
        assert found.start == wanted[SIZES[found.rank]] > 0


@pytest.mark.parametrize("is_grown", [False, True])
def test_nearly_everything_is_found_by_as_much_as_there_is(is_grown: bool) -> None:
    tokens = [number * number % 50021 for number in range(4000)]
    subject = Ngrams([] if is_grown else tokens)
    for token in tokens if is_grown else ():
        subject.append(token)
    places = [subject.find(tokens[i - SIZES[0] : i]) for i in range(SIZES[0], len(tokens))]
    right = sum(place == Place(i, 0) for i, place in enumerate(places, start=SIZES[0]))
    assert right > 0.8 * len(tokens)


def test_runs_count_how_often_a_token_came_there() -> None:
    subject = Ngrams()
    for token in [1, 2, 3, 4, 9] * 6 + [1, 2, 3, 5, 9] + [1, 2, 3, 5, 9]:
        subject.append(token)
    for rank in (1, 2):
        _, runs = subject.following(Place(0, rank), 40)
        assert list(runs[3::5]) == [0, 1, 2, 3, MOST_RUNS, MOST_RUNS, 0, 1]
    assert list(subject.following(Place(0, 0), 40)[1][3::5]) == [0, 0, 1, 2, 3, MOST_RUNS, 0, 1]


def test_a_text_goes_on_as_it_did() -> None:
    subject = Ngrams([7, 1, 2, 3, 4, 1, 2, 3])
    assert subject.find(subject.last()) == Place(4, 1)
    tokens, runs = subject.following(Place(4, 1), 10)
    assert list(tokens) == [4, 1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert len(runs) == 10


def test_nothing_goes_on_beyond_a_border() -> None:
    subject = Ngrams([1, 2, 3, 4, 5, BORDER, 6, 7, 8])
    assert subject.find([2, 3]) == Place(3, 1)
    assert list(subject.following(Place(3, 1), 10)[0]) == [4, 5]
    assert list(subject.following(Place(5, 1), 10)[0]) == []


def test_few_tokens_are_found_by_few() -> None:
    subject = Ngrams([1, 2, 3, 4, 5, 6])
    assert subject.find([9, 9, 9, 3]) == Place(3, 2)
    assert subject.find([9, 9, 2, 3]) == Place(3, 1)
    assert subject.find([3]) == Place(3, 2)
    assert subject.find([9]) is None
    assert subject.find([]) is None


def test_the_beginning_can_be_forgotten() -> None:
    subject = Ngrams([1, 2, 3, 4] * 5 + [5, 6, 7, 8, 9])
    subject.keep(5)
    assert len(subject) == 5
    assert subject.find([1, 2, 3]) is None
    assert subject.find([5, 6, 7, 8]) == Place(4, 0)
    assert subject.last() == array("i", [6, 7, 8, 9])
