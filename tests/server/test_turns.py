"""Turns that texts have: whatever those of others take, each line gets its part."""

from collections import Counter

from loramux_server.forms.turns import Line, LineTurns, Pace

QUICK, SLOW, NEW = (Line(pace, "a") for pace in Pace)
OTHER = Line(Pace.NEW, "b")


def test_lines_share_the_time_and_not_the_turns() -> None:
    turns = LineTurns()
    taken: Counter[Line] = Counter()
    seconds = {QUICK: 0.25, SLOW: 1.0, OTHER: 2.0}
    for line in seconds:
        turns.add(line, 1)
    for _ in range(130):
        line, keys = turns.take()
        taken[line] += 1
        turns.charge(line, seconds[line])
        turns.add(line, keys[0])
    used = [taken[line] * seconds[line] for line in seconds]
    assert max(used) - min(used) <= max(seconds.values())


def test_who_comes_up_waits_for_the_turn_that_is_on() -> None:
    turns = LineTurns()
    for key in range(100):
        turns.add(NEW, key)
    for _ in range(50):
        line, _ = turns.take()
        turns.charge(line, 1.0)
    turns.take()
    turns.add(OTHER, 1000)
    turns.add(QUICK, 2000)
    turns.charge(NEW, 1.0)
    assert [turns.take() for _ in range(2)] == [(QUICK, [2000]), (OTHER, [1000])]


def test_to_come_and_go_is_no_way_to_the_front() -> None:
    turns = LineTurns()
    turns.add(NEW, 1)
    turns.add(OTHER, 2)
    turns.add(OTHER, 3)
    assert turns.take() == (NEW, [1])
    turns.charge(NEW, 5.0)
    turns.add(NEW, 4)
    for key in (2, 3):
        assert turns.take() == (OTHER, [key])
        turns.charge(OTHER, 1.0)


def test_only_those_that_are_quick_share_a_turn() -> None:
    turns = LineTurns()
    for key in range(20):
        turns.add(QUICK, key)
        turns.add(SLOW, 100 + key)
    assert turns.take() == (QUICK, list(range(16)))
    turns.charge(QUICK, 0.1)
    assert turns.take() == (SLOW, [100])
    turns.charge(SLOW, 1.0)
    assert turns.take() == (QUICK, [16, 17, 18, 19])


def test_lines_without_anybody_are_forgotten() -> None:
    turns = LineTurns()
    turns.add(NEW, 0)
    for number in range(50):
        turns.add(Line(Pace.QUICK, f"t{number}"), number)
        line, _ = turns.take()
        turns.charge(line, 0.001)
        turns.add(NEW, 0)
    while turns:
        line, _ = turns.take()
        turns.charge(line, 0.001)
    assert len(turns) == 0
    assert len(turns._due) <= 2
