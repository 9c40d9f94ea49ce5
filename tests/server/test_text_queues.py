"""Turns that texts have: whatever those of others take, each queue gets its part."""

from collections import Counter

from loramux_server.forms.text_queues import Pace, QueueKey, TextQueues

QUICK, SLOW, NEW = (QueueKey(pace, "a") for pace in Pace)
OTHER = QueueKey(Pace.NEW, "b")


def test_queues_share_the_time_and_not_the_turns() -> None:
    queues = TextQueues()
    taken: Counter[QueueKey] = Counter()
    seconds = {QUICK: 0.25, SLOW: 1.0, OTHER: 2.0}
    for queue in seconds:
        queues.add(queue, 1)
    for _ in range(130):
        queue, keys = queues.take()
        taken[queue] += 1
        queues.charge(queue, seconds[queue])
        queues.add(queue, keys[0])
    used = [taken[queue] * seconds[queue] for queue in seconds]
    assert max(used) - min(used) <= max(seconds.values())


def test_who_comes_up_waits_for_the_turn_that_is_on() -> None:
    queues = TextQueues()
    for key in range(100):
        queues.add(NEW, key)
    for _ in range(50):
        queue, _ = queues.take()
        queues.charge(queue, 1.0)
    queues.take()
    queues.add(OTHER, 1000)
    queues.add(QUICK, 2000)
    queues.charge(NEW, 1.0)
    assert [queues.take() for _ in range(2)] == [(QUICK, [2000]), (OTHER, [1000])]


def test_to_come_and_go_is_no_way_to_the_front() -> None:
    queues = TextQueues()
    queues.add(NEW, 1)
    queues.add(OTHER, 2)
    queues.add(OTHER, 3)
    assert queues.take() == (NEW, [1])
    queues.charge(NEW, 5.0)
    queues.add(NEW, 4)
    for key in (2, 3):
        assert queues.take() == (OTHER, [key])
        queues.charge(OTHER, 1.0)


def test_only_those_that_are_quick_share_a_turn() -> None:
    queues = TextQueues()
    for key in range(20):
        queues.add(QUICK, key)
        queues.add(SLOW, 100 + key)
    assert queues.take() == (QUICK, list(range(16)))
    queues.charge(QUICK, 0.1)
    assert queues.take() == (SLOW, [100])
    queues.charge(SLOW, 1.0)
    assert queues.take() == (QUICK, [16, 17, 18, 19])


def test_queues_without_anybody_are_forgotten() -> None:
    queues = TextQueues()
    queues.add(NEW, 0)
    for number in range(50):
        queues.add(QueueKey(Pace.QUICK, f"t{number}"), number)
        queue, _ = queues.take()
        queues.charge(queue, 0.001)
        queues.add(NEW, 0)
    while queues:
        queue, _ = queues.take()
        queues.charge(queue, 0.001)
    assert len(queues) == 0
    assert len(queues._due) <= 2
