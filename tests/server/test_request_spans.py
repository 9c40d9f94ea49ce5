"""From the engine's reports to the spans of a request, without OpenTelemetry and its clock."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loramux.errors import UnavailableError
from loramux_server.observe.call_record import CallRecord, begin
from loramux_server.observe.spans import NO_ATTRIBUTES, Attributes
from loramux_server.services.request_spans import MAX_LOADS, RequestSpans
from loramux_server.wire.messages import BatchSize, Load, Report, Scores, Started, Token
from tests.server.test_streaming import STATS, TOKEN, Served, begun
from tests.support.fake import ManualClock

DIGEST = "sha256:1"


class Drawn:
    """A span that remembers what it was told."""

    trace_id = "1"

    def __init__(
        self, name: str, begin: float, attributes: Attributes, *, recorded: bool = True
    ) -> None:
        self.name = name
        self.begin = begin
        self.attributes = dict(attributes)
        self.finish: float | None = None
        self.error = ""
        self.parts: list[Drawn] = []
        self.is_recorded = recorded

    def child(self, name: str, begin: float, attributes: Attributes = NO_ATTRIBUTES) -> "Drawn":
        self.parts.append(Drawn(name, begin, attributes))
        return self.parts[-1]

    def end(self, end: float, attributes: Attributes = NO_ATTRIBUTES, *, error: str = "") -> None:
        assert self.finish is None, f"{self.name} ended twice"
        self.finish, self.error = end, error
        self.attributes |= attributes

    def all(self) -> "Iterator[Drawn]":
        yield self
        for part in self.parts:
            yield from part.all()

    def spent(self) -> list[tuple[str, float, float | None]]:
        """Return the name, begin and end of each part."""
        return [(part.name, part.begin, part.finish) for part in self.parts]


class Followed:
    """Requests of one call, and reports of an engine that a test makes up."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.spans = RequestSpans(self.clock)
        self.call = Drawn("call", 0.0, {})
        begin(CallRecord("method", "1", span=self.call))

    @contextmanager
    def request(self, *ids: int, digest: str | None = DIGEST) -> Iterator[None]:
        with self.spans.following("chat", dict, lambda: {"made": 1}, ids=ids, digest=digest):
            yield

    def report(self, now: float, *, seconds: float | None = None, **more: Any) -> None:
        batch = BatchSize(3, 30, 2, seconds) if seconds else None
        self.clock.now = now
        self.spans.report(Report(stats=STATS, batch=batch, **more))

    @property
    def whole(self) -> Drawn:
        (whole,) = self.call.parts
        return whole


@pytest.fixture
def followed() -> Followed:
    return Followed()


def test_phases_follow_each_other_at_the_ends_of_steps(followed: Followed) -> None:
    with followed.request(7):
        followed.report(2.0, seconds=0.5, started=[Started(7, 1.25)])
        followed.report(3.0, seconds=0.5, tokens=[Token(7, 1)])
        followed.report(4.0, seconds=0.5, tokens=[Token(7, 1)])
        followed.report(5.0, seconds=0.5, tokens=[Token(7, 1)])
        followed.clock.now = 9.0
    queue, prefill, decode = followed.whole.parts
    assert followed.whole.spent() == [
        ("queue", 0.0, 1.5), ("prefill", 1.5, 3.0), ("decode", 3.0, 5.0)
    ]  # fmt: skip
    assert queue.attributes["loramux.queue.seconds"] == 1.25
    assert prefill.spent() == [("engine step", 2.5, 3.0)]
    assert decode.spent() == [("engine step", 3.5, 4.0)]
    assert decode.attributes["loramux.completion.tokens"] == 3
    (step,) = prefill.parts
    reported = {
        name.removeprefix("loramux.batch."): value for name, value in step.attributes.items()
    }
    assert reported == {"requests": 3, "tokens": 30, "adapters": 2, "loramux.token.number": 1}
    assert (followed.whole.finish, followed.whole.attributes) == (9.0, {"made": 1})


def test_a_long_answer_has_few_step_spans(followed: Followed) -> None:
    with followed.request(7):
        followed.report(0.5, started=[Started(7, 0.0)])
        for number in range(1, 1001):
            followed.report(float(number), seconds=0.1, tokens=[Token(7, 1)])
    steps = [span for span in followed.call.all() if span.name == "engine step"]
    assert [step.attributes["loramux.token.number"] for step in steps] == [2**n for n in range(10)]


def test_an_answer_of_one_token_has_no_decode(followed: Followed) -> None:
    with followed.request(7):
        followed.report(1.0, started=[Started(7, 0.0)])
        followed.report(2.0, tokens=[Token(7, 1)])
    assert followed.whole.spent() == [("queue", 0.0, 1.0), ("prefill", 1.0, 2.0)]


def test_a_text_that_is_classified_ends_with_its_prefill(followed: Followed) -> None:
    with followed.request(7, 8):
        followed.report(2.0, seconds=0.5, started=[Started(7, 1.25), Started(8, 1.25)])
        followed.report(3.0, seconds=0.5, scores=[Scores(7, b"")])
        followed.report(4.0, seconds=0.5, scores=[Scores(8, b"")])
        followed.clock.now = 9.0
    assert followed.whole.spent() == [
        ("queue", 0.0, 1.5), ("queue", 0.0, 1.5), ("prefill", 1.5, 3.0), ("prefill", 1.5, 4.0)
    ]  # fmt: skip
    for number, prefill in enumerate(followed.whole.parts[2:]):
        assert prefill.spent() == [("engine step", 2.5 + number, 3.0 + number)]
        assert prefill.parts[0].attributes["loramux.batch.requests"] == 3
        assert prefill.attributes["loramux.completion.index"] == number


def test_only_loads_of_its_adapter_are_a_requests_own(followed: Followed) -> None:
    with followed.request(7):
        mine, other = Load("host", 0.5, DIGEST), Load("host", 0.5, "sha256:2")
        followed.report(2.0, seconds=0.25, loads=[other, mine])
        followed.report(3.0, loads=[Load("device", 0.25, DIGEST)])
    (queue,) = followed.whole.parts
    assert queue.spent() == [("adapter load", 1.25, 1.75), ("adapter load", 2.75, 3.0)]
    assert [load.attributes["loramux.adapter.tier"] for load in queue.parts] == ["host", "device"]


def test_loads_of_a_request_that_starts_over_and_over_are_bounded(followed: Followed) -> None:
    with followed.request(7):
        for number in range(100):
            followed.report(float(number), loads=[Load("device", 0.1, DIGEST)])
    assert len(followed.whole.parts[0].parts) == MAX_LOADS


def test_completions_of_others_are_not_its_own(followed: Followed) -> None:
    with followed.request(7, 8):
        followed.report(1.0, started=[Started(7, 0.0), Started(9, 0.0)], tokens=[Token(9, 1)])
        followed.report(2.0, tokens=[Token(7, 1), Token(9, 1)])
    names = [
        (part.name, part.attributes["loramux.completion.index"]) for part in followed.whole.parts
    ]
    assert names == [("queue", 0), ("queue", 1), ("prefill", 0)]


@pytest.mark.parametrize("num_tokens", [0, 1, 2])
def test_a_request_that_fails_says_so_wherever_it_was(followed: Followed, num_tokens: int) -> None:
    def fail() -> None:
        with followed.request(7):
            followed.report(1.0, started=[Started(7, 0.0)])
            for _ in range(num_tokens):
                followed.report(2.0, tokens=[Token(7, 1)])
            followed.clock.now = 5.0
            raise UnavailableError("gone", reason="ENGINE_UNAVAILABLE")

    with pytest.raises(UnavailableError):
        fail()
    assert (followed.whole.finish, followed.whole.error) == (5.0, "UNAVAILABLE")
    assert all(span.finish is not None for span in followed.whole.all())
    last = followed.whole.parts[-1]
    assert last.error == ("" if num_tokens == 1 else "UNAVAILABLE")


def test_nothing_is_kept_of_what_nobody_records(followed: Followed) -> None:
    begin(CallRecord("method", "1", span=Drawn("call", 0.0, {}, recorded=False)))
    with followed.request(7):
        followed.report(1.0, started=[Started(7, 0.0)])
    begin(CallRecord("method", "1"))
    with followed.request(7):
        followed.report(1.0, started=[Started(7, 0.0)])
    assert followed.call.parts == []


async def test_the_service_reports_what_was_asked_and_what_came_of_it() -> None:
    served = Served()
    call = Drawn("call", 0.0, {})
    begin(CallRecord("method", "1", span=call))
    stream = served.stream(temperature=0.5, seed=3, n=2)
    await begun(served, stream)
    await stream.aclose()
    (whole,) = call.parts
    for _ in range(5):  # the loop's next turns end what it ran in
        await asyncio.sleep(0)
    assert whole.name == "text_completion "
    assert whole.error == "CANCELLED"
    assert whole.attributes["gen_ai.request.choice.count"] == 2
    assert whole.attributes["gen_ai.request.temperature"] == 0.5
    assert whole.attributes["gen_ai.usage.output_tokens"] == 1
    assert whole.attributes["gen_ai.response.finish_reasons"] is None
    assert str(TOKEN) not in {str(value) for value in whole.attributes.values()}
