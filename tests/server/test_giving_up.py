"""A request that is given up or late, wherever it is by then: nothing is held for it any more."""

from collections.abc import Callable

import pytest

from loramux_server.engine.engine import Engine
from loramux_server.engine.scheduler import Scheduler
from loramux_server.lora.adapter_cache import AdapterCache
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Failure, Report, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.fake import (
    BLOCK_SIZE,
    HeldExecutor,
    ManualClock,
    SlowModel,
    completion,
    fake_engine,
    fake_source,
)

SUBJECT, NEIGHBOUR = 0, 1
ADAPTER = fake_source(1, 8)


def greedy(max_tokens: int = 40, min_tokens: int = 0) -> Sampling:
    return Sampling(
        max_tokens=max_tokens, min_tokens=min_tokens, seed=0, temperature=0.0, ignore_eos=True
    )


class Place:
    """An engine with a request in a certain state, beside another one that decodes."""

    def __init__(
        self, *, token_seconds: float = 0.0, num_blocks: int = 64, speculative_tokens: int = 0
    ) -> None:
        self.clock = ManualClock()
        self.executor = HeldExecutor()
        self.model = SlowModel(self.clock, step_seconds=1.0, token_seconds=token_seconds)
        parts = fake_engine(
            num_blocks=num_blocks, rows=8, max_running=2, max_batch_tokens=16, clock=self.clock,
            executor=self.executor, model=self.model, speculative_tokens=speculative_tokens,
        )  # fmt: skip
        self.engine: Engine = parts[0]
        self.scheduler: Scheduler = parts[1]
        self.cache: AdapterCache = parts[2]
        self.failures: list[Failure] = []
        self.tokens: dict[int, list[int]] = {}

    def submit(self, number: int, prompt: list[int], timeout: float | None = None) -> None:
        adapter = ADAPTER if number == SUBJECT else None
        self.engine.receive([Submit(number, Ask(prompt, adapter, greedy()), timeout=timeout)])

    def step(self) -> Report:
        report = self.engine.step()
        self.engine.check()
        self.failures += report.failures
        for token in report.tokens:
            self.tokens.setdefault(token.request_id, []).append(token.token)
        return report

    def load(self) -> None:
        while len(self.executor):
            self.executor.finish()
            self.step()


def queued(place: Place, timeout: float | None) -> None:
    for number in (NEIGHBOUR, 2):
        place.submit(number, [5, number])
    place.step()
    place.submit(SUBJECT, [7] * 5, timeout)
    place.step()
    assert len(place.scheduler.waiting) == 1


def loading(place: Place, timeout: float | None) -> None:
    place.submit(NEIGHBOUR, [5, 6])
    place.submit(SUBJECT, [7] * 5, timeout)
    place.step()
    assert place.cache.num_waiting == 1
    assert len(place.executor)


def prefill(place: Place, timeout: float | None) -> None:
    place.submit(NEIGHBOUR, [5, 6])
    place.submit(SUBJECT, [7] * 60, timeout)
    place.step()
    place.load()
    place.step()
    assert any(request.num_uncomputed > 1 for request in place.scheduler.running)
    assert place.cache.num_leases == 1


def decode(place: Place, timeout: float | None) -> None:
    place.submit(NEIGHBOUR, [5, 6])
    place.submit(SUBJECT, [7] * 5, timeout)
    place.step()
    place.load()
    while SUBJECT not in place.tokens:
        place.step()
    assert place.cache.num_leases == 1


@pytest.mark.parametrize("reach", [queued, loading, prefill, decode])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_nothing_is_held_one_step_later(
    reach: Callable[[Place, float | None], None], how: str
) -> None:
    place = Place()
    reach(place, 1000.0 if how == "deadline" else None)
    if how == "cancel":
        place.engine.receive([Cancel(SUBJECT)])
    else:
        place.clock.now += 1000.0
    place.step()
    others = [*place.scheduler.running, *place.scheduler.waiting]
    assert SUBJECT not in {request.request_id for request in others}
    assert place.cache.num_leases == place.cache.num_waiting == 0
    held = sum(-(-request.num_computed // BLOCK_SIZE) for request in place.scheduler.running)
    assert place.scheduler.num_used_blocks == held
    reasons = [(failure.request_id, failure.reason) for failure in place.failures]
    assert reasons == ([(SUBJECT, "DEADLINE_EXCEEDED")] if how == "deadline" else [])
    for _ in range(50):
        place.step()
    # Whoever was beside it noticed nothing.
    assert place.tokens[NEIGHBOUR] == completion([5, 6 if reach is not queued else 1], 0, 40,
                                                 eos=False)  # fmt: skip


def test_only_who_is_late_ends() -> None:
    place = Place()
    for number, timeout in enumerate([None, 500.0, 4.0]):
        place.engine.receive([Submit(number, Ask([5, number], None, greedy()), timeout=timeout)])
    for _ in range(120):
        place.step()
    assert [(failure.request_id, failure.message) for failure in place.failures] == [
        (2, "the request did not finish within 4 s")
    ]
    assert len(place.tokens[1]) == 40


def refused(
    place: Place, prompt: list[int], timeout: float, min_tokens: int = 0, tenant: str = ""
) -> str | None:
    sampling = greedy(min_tokens=min_tokens)
    place.engine.receive([Submit(99, Ask(prompt, None, sampling, tenant), timeout=timeout)])
    report = place.step()
    place.engine.receive([Cancel(99)])
    return report.failures[0].reason if report.failures else None


def experienced(speculative_tokens: int = 0) -> Place:
    """Return an engine that knows: 1 s and 0.1 s for a token a step, so 0.11 s for one of many."""
    place = Place(token_seconds=0.1, num_blocks=400, speculative_tokens=speculative_tokens)
    place.scheduler._max_batch_tokens = 100
    for number in range(3):
        place.engine.receive([Submit(90 + number, Ask([number + 2] * 100, None, greedy(2)))])
        place.step()
        place.step()
    return place


def busy(speculative_tokens: int = 0) -> Place:
    """Return one that has something to do, too."""
    place = experienced(speculative_tokens)
    place.engine.receive([Submit(0, Ask([9, 9], None, greedy(1000)))])
    place.step()
    return place


def test_a_deadline_that_cannot_be_met_even_alone_is_refused_at_once() -> None:
    place = busy()
    assert refused(place, [60] * 300, 20.0) == "DEADLINE_EXCEEDED"  # the prompt alone takes 33 s
    assert refused(place, [61] * 10, 20.0, min_tokens=40) == "DEADLINE_EXCEEDED"
    assert refused(place, [61] * 10, 20.0) is None


def test_a_deadline_is_refused_only_if_right_drafts_could_not_meet_it() -> None:
    assert refused(busy(), [61] * 10, 20.0, min_tokens=40) == "DEADLINE_EXCEEDED"
    assert refused(busy(4), [61] * 10, 20.0, min_tokens=40) is None
    assert refused(busy(4), [61] * 10, 20.0, min_tokens=200) == "DEADLINE_EXCEEDED"


def test_a_deadline_that_the_queue_makes_impossible_is_refused_to_be_tried_again() -> None:
    place = experienced()
    for number in range(2):
        place.engine.receive([Submit(number, Ask([9, number], None, greedy()))])
    place.step()
    for number in (2, 3):
        place.engine.receive([Submit(number, Ask([20 + number] * 200, None, greedy()))])
    assert refused(place, [60] * 50, 20.0) == "DEADLINE_UNREACHABLE"
    assert refused(place, [60] * 50, 200.0) is None
    assert refused(place, [60] * 50, 20.0, tenant="other") is None  # they do not go before it


@pytest.mark.parametrize(("other", "reason"), [(20, None), (21, "DEADLINE_UNREACHABLE")])
def test_what_requests_of_the_queue_share_is_waited_for_once(
    other: int, reason: str | None
) -> None:
    place = experienced()
    for number in range(2):
        place.engine.receive([Submit(number, Ask([9, number], None, greedy()))])
    place.step()
    for number, token in ((2, 20), (3, other)):
        place.engine.receive([Submit(number, Ask([token] * 200, None, greedy()))])
    assert refused(place, [60] * 50, 40.0) == reason


def test_what_is_there_already_takes_no_time() -> None:
    place = busy()
    known = [2] * 100  # of a request that ended
    assert refused(place, known, 5.0) is None
    assert refused(place, [62] * 100, 5.0) == "DEADLINE_EXCEEDED"


def test_an_engine_that_knows_nothing_yet_or_has_nothing_to_do_tries() -> None:
    assert refused(Place(token_seconds=0.1), [60] * 200, 0.5) is None
    assert refused(experienced(), [60] * 200, 0.5) is None
