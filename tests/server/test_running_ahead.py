"""Steps that are started before the one before them has ended."""

from typing import Any

import pytest

from loramux_server.engine.scheduler import Scheduler
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Logprobs, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.fake import FakeModel, completion, fake_engine, fake_source

A, B = fake_source(1, 8), fake_source(2, 16)


CHOICES: dict[str, list[dict[str, Any]]] = {
    "likeliest": [{"temperature": 0.0}],
    "drawn": [{"temperature": 3.0}],
    "drawn from some": [
        {"temperature": 3.0, "top_p": 0.8},
        {"temperature": 0.0},
        {"temperature": 5.0},
        {"temperature": 4.0, "top_k": 3, "min_p": 0.01},
    ],
    "adjusted": [
        {"temperature": 0.0, "presence_penalty": 2.0, "frequency_penalty": 4.0},
        {"temperature": 0.0},
        {"temperature": 3.0, "repetition_penalty": 3.0, "min_tokens": 3},
        {"temperature": 0.0, "repetition_penalty": 10.0, "logit_bias": {9: 6.0, 11: 6.0}},
        {"temperature": 2.0, "top_p": 0.9, "frequency_penalty": 2.0},
    ],
    "told how likely": [
        {"temperature": 3.0, "num_logprobs": 3, "repetition_penalty": 2.0},
        {"temperature": 0.0, "num_logprobs": 0},
        {"temperature": 0.0},
        {"temperature": 2.0, "num_logprobs": 20},
    ],
}


Answer = list[tuple[int, Logprobs | None]]


def outputs(
    choices: list[dict[str, Any]], *, runs_ahead: bool, num_blocks: int = 40
) -> tuple[dict[int, Answer], FakeModel, Scheduler]:
    """Return what requests of different lengths, some of which end early, are answered."""
    engine, scheduler, _, model = fake_engine(num_blocks=num_blocks, rows=64, runs_ahead=runs_ahead)
    executor = engine._residents._executor
    found: dict[int, Answer] = {}
    for number, adapter in enumerate([None, A, B, A, None, B]):
        sampling = Sampling(
            max_tokens=4 + 3 * number, seed=number, ignore_eos=number % 2 == 0,
            **choices[number % len(choices)],
        )  # fmt: skip
        engine.receive([Submit(number, Ask([5, 6, 7 + number], adapter, sampling))])
        found[number] = []
    for _ in range(200):
        while len(executor):  # type: ignore[arg-type]
            executor.finish()  # type: ignore[attr-defined]
        for token in engine.step().tokens:
            found[token.request_id].append((token.token, token.logprobs))
        engine.check()
    assert not scheduler.running
    assert not scheduler.waiting
    return found, model, scheduler


@pytest.mark.parametrize("choices", CHOICES.values(), ids=list(CHOICES))
def test_the_tokens_are_those_of_one_step_after_the_other(choices: list[dict[str, Any]]) -> None:
    plain, waits, _ = outputs(choices, runs_ahead=False)
    ahead, model, _ = outputs(choices, runs_ahead=True)
    assert ahead == plain
    sampling = Sampling(max_tokens=4, seed=0, **choices[0])
    tokens = completion([5, 6, 7], 0, 4, eos=False, sampling=sampling)
    assert [token for token, _ in plain[0]] == tokens
    assert waits.num_ahead == 0
    assert model.num_ahead > 10


def test_who_begins_anew_is_drawn_the_same_tokens() -> None:
    choices = CHOICES["drawn from some"] + CHOICES["adjusted"]
    plain, *_ = outputs(choices, runs_ahead=False)
    crowded, model, scheduler = outputs(choices, runs_ahead=True, num_blocks=7)
    assert scheduler.num_preemptions
    assert model.num_ahead
    assert crowded == plain


def test_a_step_waits_for_the_one_before_it_where_the_host_is_needed() -> None:
    engine, _, _, model = fake_engine(num_blocks=40, rows=64, runs_ahead=True)
    for number, num_logprobs in enumerate((None, 21)):
        sampling = Sampling(max_tokens=9, seed=0, ignore_eos=True, num_logprobs=num_logprobs)
        engine.receive([Submit(number, Ask([5, 6, 7], None, sampling))])
    for _ in range(4):
        engine.step()
    assert model.num_ahead == 0


def test_what_is_cancelled_in_flight_is_answered_no_more() -> None:
    engine, scheduler, _, model = fake_engine(num_blocks=40, rows=64, runs_ahead=True)
    sampling = Sampling(max_tokens=9, seed=0, temperature=0.0, ignore_eos=True)
    for number in range(2):
        engine.receive([Submit(number, Ask([5, 6, 7 + number], None, sampling))])
    for _ in range(3):
        engine.step()
    assert model.num_ahead
    engine.receive([Cancel(0)])
    used = scheduler.num_used_blocks
    answered = [token.request_id for _ in range(20) for token in engine.step().tokens]
    assert set(answered) == {1}
    assert used
    assert scheduler.num_used_blocks == 0
