"""Places at which tokens came before."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from loramux_server.engine.ngrams import BORDER, MOST_RUNS, SIZE, Ngrams

TEXTS = st.lists(st.integers(0, 3), max_size=200)


def latest(tokens: list[int], last: list[int]) -> int:
    """Return the place after the latest `last` that anything follows."""
    places = (i for i in range(len(tokens) - 1, SIZE - 1, -1) if tokens[i - SIZE : i] == last)
    return next(places, 0)


@given(TEXTS, TEXTS, st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE))
def test_what_is_found_is_the_latest(first: list[int], rest: list[int], last: list[int]) -> None:
    subject = Ngrams(first)
    for token in rest:
        subject.append(token)
    assert len(subject) == len(first) + len(rest)
    place = subject.find(last)
    # Two may share a slot; then the one that came before is forgotten, but none is mixed up.
    assert place in (0, latest(first + rest, last))


def test_nearly_everything_is_found() -> None:
    tokens = [number * number % 50021 for number in range(4000)]
    grown, made = Ngrams(), Ngrams(tokens)
    for token in tokens:
        grown.append(token)
    for subject in (grown, made):
        found = [subject.find(tokens[i - SIZE : i]) for i in range(SIZE, len(tokens))]
        right = sum(place == i for place, i in zip(found, range(SIZE, len(tokens)), strict=True))
        assert right > 0.7 * len(tokens)


def test_runs_count_how_often_a_token_came_there() -> None:
    subject = Ngrams()
    for token in [1, 2, 3, 4, 9] * 6 + [1, 2, 3, 5, 9] + [1, 2, 3, 5, 9]:
        subject.append(token)
    _, runs = subject.following(0, 40)
    assert list(runs[3::5]) == [0, 1, 2, 3, MOST_RUNS, MOST_RUNS, 0, 1]


def test_a_text_goes_on_as_it_did() -> None:
    subject = Ngrams([7, 1, 2, 3, 4, 1, 2, 3])
    assert subject.find(subject.last()) == 4
    tokens, runs = subject.following(4, 10)
    assert list(tokens) == [4, 1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert len(runs) == 10


def test_nothing_goes_on_beyond_a_border() -> None:
    subject = Ngrams([1, 2, 3, 4, 5, BORDER, 6, 7, 8])
    assert subject.find([1, 2, 3]) == 3
    assert list(subject.following(3, 10)[0]) == [4, 5]
    assert list(subject.following(5, 10)[0]) == []


def test_the_beginning_can_be_forgotten() -> None:
    subject = Ngrams([1, 2, 3, 4] * 5 + [5, 6, 7, 8, 9])
    subject.keep(5)
    assert len(subject) == 5
    assert subject.find([1, 2, 3]) == 0
    assert subject.find([5, 6, 7]) == 3
    assert subject.last() == array("i", [7, 8, 9])
