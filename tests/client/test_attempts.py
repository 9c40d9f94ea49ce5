"""Which failed calls are made again, how soon, and how many of them."""

import grpc
import pytest

from loramux._channel import MAX_ATTEMPTS, RETRY_TOKENS
from loramux._routing.attempts import Attempts, Budget
from tests.support.failed_call import AWAY, Failure, refusal


def delays(failure: Failure, *, has_others: bool = False) -> list[float | None]:
    attempts = Attempts(Budget(), None)
    return [attempts.delay(failure, has_others=has_others, now=0.0) for _ in range(MAX_ATTEMPTS)]


def test_attempts_wait_longer_each_time_and_end() -> None:
    *waits, last = delays(AWAY)
    assert last is None
    for wait, middle in zip(waits, (0.4, 0.8, 1.6, 3.2), strict=True):
        assert wait == pytest.approx(middle, rel=0.2)


def test_only_the_first_failure_is_answered_elsewhere_at_once() -> None:
    first, second, *_ = delays(AWAY, has_others=True)
    assert first == 0.0
    assert second


def test_a_call_for_which_there_is_no_room_is_tried_everywhere_and_not_again() -> None:
    assert delays(refusal("QUEUE_FULL", 2.0), has_others=True)[:3] == [0.0] * 3
    assert delays(refusal("QUEUE_FULL", 2.0)) == [None] * MAX_ATTEMPTS
    assert delays(refusal("QUOTA_EXCEEDED", 2.0), has_others=True) == [None] * MAX_ATTEMPTS


def test_the_server_says_how_long_to_wait_or_never_to_come_again() -> None:
    key = "grpc-retry-pushback-ms"
    assert delays(Failure(grpc.StatusCode.UNAVAILABLE, (key, "7500")))[0] == 7.5
    at_once = Failure(grpc.StatusCode.UNAVAILABLE, (key, "0"))
    assert delays(at_once) == [0.0] * (MAX_ATTEMPTS - 1) + [None]
    never = Failure(grpc.StatusCode.UNAVAILABLE, (key, "-1"))
    assert delays(never, has_others=True) == [None] * MAX_ATTEMPTS


def test_nobody_waits_past_the_deadline() -> None:
    attempts = Attempts(Budget(), deadline=10.0)
    assert attempts.delay(AWAY, has_others=False, now=9.9) is None
    assert Attempts(Budget(), 10.0).delay(AWAY, has_others=True, now=9.9) == 0.0
    assert attempts.remaining(9.0) == 1.0
    assert attempts.remaining(11.0) == 0.0


def test_half_of_the_budget_is_spent_and_successes_bring_it_back() -> None:
    budget = Budget()
    half = RETRY_TOKENS // 2
    for is_full in (False, True):  # neither takes from the other
        assert [budget.failed(is_full=is_full) for _ in range(half)].count(True) == half - 1
        assert not budget.failed(is_full=is_full)
    for _ in range(30):
        budget.succeeded()
    assert budget.failed(is_full=False)
    assert budget.failed(is_full=True)


def test_a_refusal_that_is_the_answer_costs_nothing() -> None:
    budget = Budget()
    for _ in range(RETRY_TOKENS):
        full = Attempts(budget, None).delay(refusal("QUEUE_FULL"), has_others=False, now=0.0)
        assert full is None
    assert Attempts(budget, None).delay(refusal("QUEUE_FULL"), has_others=True, now=0.0) == 0.0
    assert Attempts(budget, None).delay(AWAY, has_others=True, now=0.0) == 0.0
