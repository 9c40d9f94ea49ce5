"""Who may wait, who is refused, and who gives way."""

from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from loramux.errors import LoramuxError, ResourceExhaustedError
from loramux_server.metrics.loop_lag import NUM_SAMPLES, LoopLag
from loramux_server.waiting_room.busy_rate import HALF_LIFE, BusyRate
from loramux_server.waiting_room.forecast import CAUTION
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.room import MAX_DELAY, UNKNOWN_DELAY
from loramux_server.wire.messages import CacheStats, Stats
from tests.support.fake import ManualClock
from tests.support.rooms import open_room


class Room:
    """A room whose guests leave when they are told to."""

    def __init__(self, **limits: Any) -> None:
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.lag = 0.0
        self.room = open_room(
            registry=self.registry, clock=self.clock, lag=lambda: self.lag, **limits
        )
        self._exits: dict[Place, ExitStack] = {}
        self.lost: dict[Place, LoramuxError] = {}

    def come(
        self, tenant: str = "acme", *, count: int = 1, prompt: int = 1, size: int = 1,
        weight: int = 1, seconds_left: float = 60.0, max_tokens: int = 10, priority: int = 0,
    ) -> Place:  # fmt: skip
        with ExitStack() as exits:
            place = exits.enter_context(
                self.room.place(
                    tenant, weight, size, max_tokens=max_tokens, seconds_left=seconds_left,
                    priority=priority,
                )
            )  # fmt: skip
            self.room.enter(
                place, num_completions=count, num_prompt=prompt, seconds_left=seconds_left,
                on_evicted=lambda error: self.lost.__setitem__(place, error),
            )  # fmt: skip
            self._exits[place] = exits.pop_all()
        return place

    def go(self, place: Place) -> None:
        self._exits.pop(place).close()

    def refused(self, tenant: str = "acme", **request: Any) -> ResourceExhaustedError:
        with pytest.raises(ResourceExhaustedError) as caught:
            self.come(tenant, **request)
        return caught.value

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"loramux_{name}", labels)

    def shed(self, cause: str) -> float:
        return self.sample("requests_shed_total", cause=cause) or 0.0


def test_completions_beyond_the_queue_are_refused_until_one_ends() -> None:
    room = Room(max_running=2, max_waiting=3)
    first = room.come(count=4)
    room.come()
    error = room.refused()
    assert error.reason == "QUEUE_FULL"
    assert "3 requests may wait" in str(error)
    assert error.retry_delay == UNKNOWN_DELAY
    assert room.shed("requests") == 1
    first.started()
    room.refused()
    first.finished(5)
    room.come()
    room.refused()
    room.go(first)
    room.come(count=3)
    room.refused()


def test_prompt_tokens_count_until_the_completion_starts() -> None:
    room = Room(max_tokens=10)
    place = room.come(count=2, prompt=4)
    assert "8 of at most 10 prompt tokens" in str(room.refused(prompt=3))
    assert room.shed("tokens") == 1
    place.started()
    assert room.sample("waiting_prompt_tokens") == 4
    room.come(prompt=3)


def test_what_alone_is_above_a_limit_waits_alone() -> None:
    room = Room(max_tokens=10, max_bytes=10)
    place = room.come(prompt=100, size=100)
    assert room.refused().reason == "QUEUE_FULL"
    place.started()
    room.come()


def test_bytes_count_until_all_completions_have_started() -> None:
    room = Room(max_bytes=10)
    place = room.come(count=2, size=8)
    place.started()
    assert "8 of at most 10 bytes" in str(room.refused(size=3))
    assert room.shed("bytes") == 1
    place.started()
    assert room.sample("waiting_bytes") == 0
    room.come(size=3)


def test_who_goes_leaves_nothing() -> None:
    room = Room(max_running=1, max_waiting=3, max_tokens=10, max_bytes=10)
    for _ in range(3):
        place = room.come(count=2, prompt=5, size=10)
        place.started()
        place.finished(1)
        room.go(place)
        assert room.sample("waiting_prompt_tokens") == room.sample("waiting_bytes") == 0
    room.come(count=4)


def test_a_late_event_loop_takes_nothing_more() -> None:
    room = Room(max_lag=0.5)
    room.lag = 0.75
    error = room.refused()
    assert (error.reason, error.retry_delay) == ("SERVER_BUSY", 0.75)
    assert room.shed("lag") == 1
    room.lag = 0.5
    room.come()
    unlimited = Room(max_lag=0.0)
    unlimited.lag = 100.0
    unlimited.come()


def test_a_single_pause_is_no_lag() -> None:
    lag = LoopLag()
    for seconds in (3.0, 0.0, 3.0):
        lag.note(seconds)
    assert lag.seconds == 0.0
    for _ in range(NUM_SAMPLES):
        lag.note(3.0)
    assert lag.seconds == 3.0


def test_the_delay_follows_the_measured_rate() -> None:
    room = Room(max_running=0, max_waiting=12)
    places = [room.come() for _ in range(12)]
    for place in places[:4]:
        room.clock.now += 0.5
        place.started()
    # Two in a second, and eight wait.
    assert room.refused().retry_delay == pytest.approx(4.0, rel=0.1)
    room.clock.now += 1000.0
    places[4].started()
    assert room.refused().retry_delay == MAX_DELAY


def test_a_prompt_whose_memory_comes_too_late_is_refused() -> None:
    room = Room(block_size=4, num_blocks=10)
    running = [room.come(prompt=1) for _ in range(9)]
    for place in running:
        place.started()
    room.room.report(used_blocks(10))
    room.come(prompt=10)
    room.come(prompt=10, seconds_left=0.0)  # nothing is known of the rate
    for place in running[:4]:
        room.clock.now += 1.0
        place.finished(9)  # ten tokens in a second
    error = room.refused(prompt=10, seconds_left=2.0)
    assert error.reason == "MEMORY_UNREACHABLE"
    assert error.retry_delay == pytest.approx(1.0, rel=0.2)
    assert room.shed("memory") == 1
    room.come(prompt=10, seconds_left=5.0)
    room.room.report(used_blocks(0))
    room.come(prompt=10, seconds_left=0.1)


def test_memory_of_another_tenant_counts_as_far_as_it_takes_turns() -> None:
    room = Room(block_size=4, num_blocks=10)
    running = [room.come("noisy") for _ in range(5)]
    for place in running:
        place.started()
    room.room.report(used_blocks(10))
    for _ in range(10):
        room.come("noisy", prompt=10)
    for place in running[:4]:
        room.clock.now += 1.0
        place.finished(9)  # ten tokens in a second
    assert room.refused("noisy", prompt=10, seconds_left=5.0).reason == "MEMORY_UNREACHABLE"
    assert room.refused("quiet", prompt=10, seconds_left=1.5).reason == "MEMORY_UNREACHABLE"
    room.come("heavy", weight=4, prompt=10, seconds_left=1.5)  # it has four turns to one
    room.come("quiet", prompt=10, seconds_left=3.0)  # after one of each
    room.refused("quiet", prompt=10, seconds_left=3.0)


def queue() -> Room:
    """Return a room of which it is known: one starts in a second, and runs for two, or 20 tokens.

    Two of the noisy tenant run in it, and six wait.
    """
    room = Room(max_running=2, max_waiting=100)
    places = [room.come("noisy") for _ in range(16)]
    for number, place in enumerate(places[:10]):
        room.clock.now += 1.0
        place.started()
        if number >= 2:
            places[number - 2].finished(20)
            room.go(places[number - 2])
    return room


def test_what_would_end_too_late_behind_others_is_refused() -> None:
    room = queue()
    # It is the seventh, with a second for each; then its ten tokens in one; and caution.
    error = room.refused("noisy", max_tokens=10, seconds_left=11.5)
    assert error.reason == "DEADLINE_UNREACHABLE"
    assert error.retry_delay == pytest.approx(CAUTION * 8.0 - 11.5, abs=0.5)
    assert room.shed("time") == 1
    room.come("noisy", max_tokens=10, seconds_left=13.5)
    room.refused("noisy", max_tokens=20, seconds_left=14.2)
    room.come("noisy", max_tokens=3000, seconds_left=16.5)  # but others make twenty


def test_those_of_another_tenant_count_as_far_as_they_take_turns() -> None:
    room = queue()
    assert room.refused("quiet", seconds_left=4.1).reason == "DEADLINE_UNREACHABLE"
    room.come("quiet", seconds_left=5.1)  # after one of the other's, and it runs for a second
    room.refused("quiet", seconds_left=7.0)
    room.come("quiet", seconds_left=9.0)
    room.refused("light", seconds_left=4.5)
    room.come("heavy", weight=4, seconds_left=4.5)


def test_where_nobody_waits_for_others_to_end_all_is_tried() -> None:
    room = queue()
    for place in list(room._exits):
        room.go(place)
    room.come(seconds_left=0.1)
    room.come(seconds_left=0.1)
    room.refused(seconds_left=0.1)


def test_who_waited_too_long_to_be_finished_is_not_started_where_others_wait() -> None:
    room = queue()
    late = room.come("noisy", count=2, max_tokens=20, seconds_left=15.0)
    room.clock.now += 13.5  # what it may make takes two seconds
    late.started()
    error = room.lost[late]
    assert error.reason == "DEADLINE_EXCEEDED"
    assert "it has 1.5 s left and would take about 2 s" in str(error)
    assert room.shed("late") == 1
    assert late.num_open == late.num_unstarted == 0


def test_who_may_be_finished_or_has_begun_or_keeps_nobody_waiting_is_started() -> None:
    room = queue()
    begun = room.come("noisy", count=2, max_tokens=20, seconds_left=15.0)
    begun.started()
    soon = room.come("noisy", max_tokens=20, seconds_left=16.5)
    short = room.come("noisy", max_tokens=10, seconds_left=16.0)
    room.clock.now += 14.5
    for place in (soon, short, begun):
        place.started()
    for place in list(room._exits):
        room.go(place)
    for _ in range(2):
        room.come().started()
    alone = room.come(count=2, max_tokens=20, seconds_left=60.0)
    room.clock.now += 59.0
    alone.started()
    assert not room.lost


def test_those_that_start_together_keep_nobody_waiting() -> None:
    room = queue()
    for place in list(room._exits):
        room.go(place)
    pair = [room.come(max_tokens=20, seconds_left=1.5) for _ in range(2)]  # and take two seconds
    for place in pair:
        place.started()
    assert not room.lost


def used_blocks(count: int) -> Stats:
    return Stats(
        running=0, waiting=0, used_blocks=count, preemptions=0, prompt_tokens=0, shared_tokens=0,
        device=CacheStats(), host=CacheStats(),
    )  # fmt: skip


def test_a_rate_counts_the_time_in_which_somebody_waits_and_forgets() -> None:
    rate = BusyRate()
    rate.pass_time(4.0)
    rate.add(7)
    assert rate.per_second is None
    for _ in range(3):
        rate.add(0)
    assert rate.per_second == pytest.approx(2.0, rel=0.2)
    for _ in range(100):
        rate.add(HALF_LIFE)
        rate.pass_time(1.0)
    assert rate.per_second == pytest.approx(HALF_LIFE, rel=0.05)


def test_the_last_of_a_tenant_with_more_than_its_part_give_way() -> None:
    room = Room(max_running=0, max_waiting=6)
    noisy = [room.come("noisy") for _ in range(6)]
    assert room.refused("noisy").reason == "QUEUE_FULL"
    noisy[5].started()
    for _ in range(2):
        room.come("quiet")
    assert list(room.lost) == [noisy[4], noisy[3]]
    error = room.lost[noisy[4]]
    assert (error.reason, error.retry_delay) == ("QUEUE_FULL", UNKNOWN_DELAY)
    assert room.shed("share") == 2
    assert room.refused("quiet").reason == "QUEUE_FULL"  # the other waits with three, too


def test_a_heavier_tenant_gives_way_later() -> None:
    room = Room(max_running=0, max_waiting=6)
    heavy = [room.come("heavy", weight=5) for _ in range(6)]
    room.come("light")
    assert list(room.lost) == [heavy[5]]
    room.refused("light")


def test_the_worst_of_a_tenant_gives_way_to_a_better_priority() -> None:
    room = Room(max_running=0, max_waiting=4)
    waiting = [room.come(priority=priority) for priority in (5, 9, 9, 0)]
    room.come(priority=5)
    assert list(room.lost) == [waiting[2]]
    assert "a request of priority 5 arrived" in str(room.lost[waiting[2]])
    assert room.shed("priority") == 1
    room.refused(priority=9)
    waiting[1].started()
    room.refused(priority=5)  # those with a worse one have started
    # For another tenant shares alone decide, whatever its priority.
    room.come("other", priority=99)
    assert len(room.lost) == 2
    room.refused("other", count=2, priority=-99)


def test_a_worse_priority_of_the_tenant_does_not_count() -> None:
    room = queue()
    room.refused("noisy", seconds_left=4.1)
    room.come("noisy", seconds_left=4.1, priority=-1)
    assert room.refused("quiet", seconds_left=4.1, priority=-1).reason == "DEADLINE_UNREACHABLE"


def test_nobody_gives_way_where_that_would_not_be_enough() -> None:
    room = Room(max_running=0, max_waiting=6)
    for _ in range(6):
        room.come("noisy")
    room.refused("quiet", count=8)
    room.refused("quiet", count=4)  # then it would have more than the other
    assert not room.lost


def test_nobody_gives_way_to_a_call_that_asks_for_nothing_valid() -> None:
    room = Room(max_running=0, max_waiting=2)
    for _ in range(2):
        room.come("noisy")
    with room.room.place("quiet", 1, 1, max_tokens=1, seconds_left=60.0):
        assert not room.lost
