"""How much of a prompt a step may take beside decode; no clock but the numbers given."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.engine.pace import Pace
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Report, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.fake import ManualClock, SlowModel, completion, fake_engine

MAX_STALL = 0.25


def step(subject: Pace, *, decode: float = 0.1, token: float = 0.001) -> tuple[int, float]:
    """Take a step that decodes with as much of a prompt as is allowed; return both."""
    tokens = subject.max_prompt_tokens
    assert tokens is not None
    seconds = decode + token * tokens
    subject.learn(tokens, 4, seconds)
    return tokens, seconds


def learnt(*, decode: float = 0.1, token: float = 0.001) -> Pace:
    """Return what has seen some steps of each kind."""
    subject = Pace(MAX_STALL)
    for _ in range(4):
        subject.learn(0, 4, decode)
        step(subject, decode=decode, token=token)
    return subject


def test_a_step_fills_the_time_that_decode_leaves() -> None:
    tokens, seconds = step(learnt())
    assert tokens == pytest.approx(150, abs=1)
    assert seconds == pytest.approx(MAX_STALL, abs=0.002)


def test_it_begins_with_little_and_learns_from_one_step() -> None:
    subject = Pace(MAX_STALL)
    assert subject.max_prompt_tokens == 64
    subject.learn(0, 4, 0.1)
    assert step(subject)[0] == 64
    assert step(subject)[1] == pytest.approx(MAX_STALL, abs=0.002)


def test_a_prompt_alone_gives_the_cost_of_a_token() -> None:
    subject = Pace(MAX_STALL)
    subject.learn(512, 0, 0.512)
    subject.learn(0, 1, 0.1)
    assert subject.max_prompt_tokens == pytest.approx(150, abs=1)


def test_zero_is_no_limit() -> None:
    subject = Pace(0.0)
    subject.learn(512, 4, 100.0)
    assert subject.max_prompt_tokens is None


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("decode_alone", [True, False])
def test_it_follows_a_machine_whose_speed_changes(factor: float, decode_alone: bool) -> None:
    subject = learnt()
    decode, token = 0.1 * factor, 0.001 * factor
    seconds = []
    for _ in range(16):
        if decode_alone:
            subject.learn(0, 4, decode)
        seconds.append(step(subject, decode=decode, token=token)[1])
    least = decode + 64 * token
    assert seconds[-1] == pytest.approx(max(MAX_STALL, least), rel=0.15)
    # Until it has noticed, a step takes what it always took.
    assert max(seconds) <= max(1.5, factor) * MAX_STALL + 0.001


def test_a_first_step_that_compiles_is_soon_forgotten() -> None:
    subject = Pace(MAX_STALL)
    subject.learn(512, 0, 30.0)
    subject.learn(0, 4, 10.0)
    assert subject.max_prompt_tokens == 64
    subject.learn(0, 4, 0.1)
    step(subject)
    assert step(subject)[1] == pytest.approx(MAX_STALL, abs=0.002)


def test_a_step_that_is_interrupted_changes_nothing() -> None:
    subject = learnt()
    before = subject.max_prompt_tokens
    subject.learn(0, 4, 5.0)
    subject.learn(100, 4, 5.0)
    assert subject.max_prompt_tokens == before


def test_few_tokens_show_nothing() -> None:
    subject = learnt()
    before = subject.max_prompt_tokens
    for _ in range(20):
        subject.learn(2, 4, 0.2)
    assert subject.max_prompt_tokens == before


@given(
    st.lists(
        st.tuples(st.integers(0, 512), st.integers(0, 64), st.floats(0, 1e6)).filter(
            lambda cost: cost[0] + cost[1] > 0
        )
    )
)
def test_whatever_steps_cost_prompts_go_on(costs: list[tuple[int, int, float]]) -> None:
    subject = Pace(MAX_STALL)
    for prompt_tokens, decode_tokens, seconds in costs:
        subject.learn(prompt_tokens, decode_tokens, seconds)
        assert subject.max_prompt_tokens is not None
        assert subject.max_prompt_tokens >= 64


def longest_wait(max_stall: float) -> float:
    """Return the longest time between two tokens of a stream beside which a long prompt runs."""
    clock = ManualClock()
    engine, *_ = fake_engine(
        num_blocks=600, rows=8, max_batch_tokens=512, max_stall=max_stall, clock=clock,
        model=SlowModel(clock, step_seconds=0.05, token_seconds=0.0015),
    )  # fmt: skip
    sampling = Sampling(max_tokens=200, seed=0, temperature=0.0, ignore_eos=True)
    engine.receive([Submit(0, Ask([5] * 80, None, sampling))])
    reports: list[tuple[float, Report]] = []
    while not any(token.request_id == 1 for _, report in reports for token in report.tokens):
        if len(reports) == 10:
            engine.receive([Submit(1, Ask(list(range(2, 60)) * 30, None, sampling))])
        report = engine.step()
        reports.append((clock(), report))
    arrivals = [at for at, report in reports if any(t.request_id == 0 for t in report.tokens)]
    return max(later - sooner for sooner, later in pairwise(arrivals))


def test_a_long_prompt_keeps_no_stream_waiting() -> None:
    assert longest_wait(0.0) > 0.8
    assert longest_wait(MAX_STALL) <= MAX_STALL


@pytest.mark.parametrize("prompt", [0, 64])
@pytest.mark.parametrize("drafts", [8, 60, 480])
def test_drafts_make_neither_prompts_nor_decode_look_dear(prompt: int, drafts: int) -> None:
    subject = learnt()
    for _ in range(10):
        subject.learn(0, 4, 0.1 + 0.003 * 8, 8)
        subject.learn(prompt, 4, 0.1 + 0.001 * prompt + 0.003 * drafts, drafts)
    assert subject.least_seconds(1000, 0) == pytest.approx(1.0, rel=0.1)
    assert subject.least_seconds(0, 10) == pytest.approx(1.0, rel=0.1)
    assert subject.part_of_draft(0) == pytest.approx(0.03, rel=0.1)
    assert subject.part_of_draft(100) == pytest.approx(0.015, rel=0.1)


def test_drafts_take_the_time_that_decode_and_prompts_leave() -> None:
    subject = learnt()
    for _ in range(9):
        subject.learn(0, 4, 0.1 + 0.002 * 8, 8)
    assert subject.max_draft_tokens(0) == pytest.approx(75, abs=1)
    assert subject.max_draft_tokens(100) == pytest.approx(25, abs=1)
    assert subject.max_draft_tokens(1000) == 0
    assert Pace(MAX_STALL).max_draft_tokens(0) is None
    assert Pace(0.0).max_draft_tokens(0) is None


def test_drafts_are_never_thought_free() -> None:
    subject = learnt()
    for _ in range(9):
        subject.learn(0, 4, 0.05, 8)
    assert subject.part_of_draft(0) > 0


def test_drafts_are_thought_dear_before_anything_is_known() -> None:
    assert Pace(0.0).part_of_draft(0) > 0.01
    subject = Pace(0.0)
    subject.learn(0, 1, 0.1)
    assert subject.part_of_draft(0) == pytest.approx(1 / 16)


def test_drafts_that_were_dear_for_a_moment_are_tried_again() -> None:
    subject = learnt()
    for _ in range(7):
        subject.learn(0, 4, 0.1 + 0.08 * 8, 8)
    dear = subject.part_of_draft(0)
    assert dear == pytest.approx(0.8, rel=0.1)
    found, num_steps = [], 0
    while subject.part_of_draft(0) > 0.1:
        subject.learn(0, 4, 0.1)
        found.append(subject.part_of_draft(0))
        num_steps += 1
    assert num_steps < 1000
    assert found[100] == dear  # not at once
    for _ in range(3):
        subject.learn(0, 4, 0.1 + 0.08 * 8, 8)
    assert subject.part_of_draft(0) == pytest.approx(dear)  # they still are
    for _ in range(10_000):
        subject.learn(0, 4, 0.1)
    assert 0 < subject.part_of_draft(0) < 0.1


def test_drafts_that_were_never_tried_are_thought_cheaper_after_a_while() -> None:
    subject = Pace(0.0)
    for _ in range(1000):
        subject.learn(0, 32, 0.1)
    assert 0 < subject.part_of_draft(0) < 1 / 100


def test_drafts_beside_prompts_are_not_thought_cheaper() -> None:
    subject = learnt()
    for _ in range(7):
        subject.learn(0, 4, 0.1 + 0.03 * 8, 8)
    known = subject.part_of_draft(0)
    for _ in range(1000):
        subject.learn(8, 4, 0.1 + 0.03 * 8, 8)  # they are tried, if that tells nothing
    assert subject.part_of_draft(0) == known


@pytest.mark.parametrize("drafts", [0, 16])
def test_no_step_takes_too_long_for_drafts(drafts: int) -> None:
    clock = ManualClock()
    model = SlowModel(clock, step_seconds=0.02, token_seconds=0.001)
    engine, *_ = fake_engine(
        num_blocks=4000, rows=8, max_running=32, max_batch_tokens=512, max_stall=MAX_STALL,
        model=model, clock=clock, speculative_tokens=drafts,
    )  # fmt: skip
    greedy = Sampling(max_tokens=60, seed=0, temperature=0.0, ignore_eos=True)
    text = completion([5, 6, 7], 0, 60, eos=False)
    engine.receive([Submit(i, Ask([5, 6, 7], None, greedy, prediction=text)) for i in range(24)])
    sizes = []
    for number in range(60):
        if number % 3 == 0:
            prompt = [number % 50 + 2] * 300
            short = Sampling(max_tokens=1, seed=0)
            engine.receive([Submit(100 + number, Ask(prompt, None, short))])
        report = engine.step()
        if number > 6 and report.batch and report.batch.requests > 4:
            sizes.append(report.batch)
    assert max(size.seconds for size in sizes) <= 1.1 * MAX_STALL
    assert bool(sum(size.drafted for size in sizes)) is bool(drafts)
