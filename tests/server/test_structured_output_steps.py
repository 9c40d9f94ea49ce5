"""Requests whose text has a form, in an engine: whoever is not one of them does not notice."""

import pytest
import torch

from loramux_server.engine.allowed import only_allowed
from loramux_server.engine.engine import Engine
from loramux_server.forms.bits import has_bit
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Failure, Finish, Pause, Report, Resume, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.fake import EOS, FakeModel, completion, fake_engine
from tests.support.fake_forms import FORM, STEPS, FakeForms

FREE = Sampling(max_tokens=12, seed=0, temperature=0.0, ignore_eos=True)
SHAPED = Sampling(max_tokens=8, seed=3, form=FORM)


class Log:
    """What an engine answered."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.finishes: dict[int, Finish] = {}
        self.failures: list[Failure] = []
        self.compiled: list[float] = []

    def step(self, engine: Engine, count: int = 1) -> None:
        for _ in range(count):
            report: Report = engine.step()
            # To wait for a form is no work; the clocks of these tests know no other time.
            assert report.batch is None or report.batch.seconds == 0.0
            engine.check()
            for token in report.tokens:
                self.tokens.setdefault(token.request_id, []).append(token.token)
                if token.finish:
                    self.finishes[token.request_id] = token.finish
            self.failures += report.failures
            self.compiled += report.compiled


def submits(*samplings: Sampling) -> list[Submit]:
    return [Submit(i, Ask([5, 6, 7 + i], None, sampling)) for i, sampling in enumerate(samplings)]


def free(number: int, length: int = 12) -> list[int]:
    return completion([5, 6, 7 + number], 0, length, eos=False)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_text_takes_its_form_and_its_neighbours_are_what_they_are_alone(runs_ahead: bool) -> None:
    forms = FakeForms()
    engine, scheduler, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms, runs_ahead=runs_ahead)
    engine.receive(submits(FREE, SHAPED, FREE, SHAPED))
    log = Log()
    log.step(engine, 30)
    assert log.tokens[0] == free(0) and log.tokens[2] == free(2)
    for number in (1, 3):
        first, second, third = log.tokens[number]
        assert first in STEPS[0] and second in STEPS[1] and third == EOS
        assert log.finishes[number] is Finish.STOP
    assert forms.live == {}
    assert log.compiled == [0.5, 0.5]
    assert not scheduler.running and not scheduler.waiting


def shaped_alone() -> list[int]:
    engine, *_ = fake_engine(num_blocks=40, rows=8, masks=FakeForms())
    engine.receive([Submit(1, Ask([5, 6, 8], None, SHAPED))])
    log = Log()
    log.step(engine, 10)
    return log.tokens[1]


def test_a_request_waits_for_its_form_while_others_pass_it() -> None:
    forms = FakeForms(prompt=False)
    engine, scheduler, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms)
    engine.receive(submits(FREE, SHAPED, FREE))
    log = Log()
    log.step(engine, 20)
    assert log.tokens == {0: free(0), 2: free(2)}
    assert not engine.can_step
    assert [request.request_id for request in scheduler.waiting] == [1]
    forms.answer()
    assert engine.can_step
    log.step(engine)
    assert len(log.tokens[1]) == 1


@pytest.mark.parametrize("num_states", [0, 8])
def test_a_row_that_is_not_known_in_time_is_put_off_and_no_token_is_lost(num_states: int) -> None:
    forms = FakeForms(prompt=False)
    engine, scheduler, _, _ = fake_engine(
        num_blocks=40, rows=8, masks=forms, clock=lambda: float(forms.waits),
        num_states=num_states,
    )  # fmt: skip
    engine.receive(submits(FREE, SHAPED))
    log = Log()
    log.step(engine, 2)
    forms.answer()
    log.step(engine)  # its first token
    log.step(engine)  # for its second, it runs in vain
    assert (len(log.tokens[0]), len(log.tokens[1]), forms.waits) == (4, 1, 1)
    log.step(engine, 2)  # it does not again
    assert (len(log.tokens[0]), len(log.tokens[1]), forms.waits) == (6, 1, 1)
    forms.answer()
    log.step(engine)
    assert len(log.tokens[1]) == 2
    log.step(engine)  # from now on it waits without running
    assert (len(log.tokens[1]), forms.waits) == (2, 1)
    forms.answer()
    log.step(engine, 10)
    assert log.tokens == {0: free(0), 1: shaped_alone()}
    # A state knows of the token that is computed again: with states it begins anew, and not for
    # want of blocks.
    assert scheduler.num_preemptions == 0


@pytest.mark.parametrize("num_states", [0, 8])
def test_a_prompt_whose_last_chunk_is_put_off_goes_on(num_states: int) -> None:
    forms = FakeForms(prompt=False)
    engine, scheduler, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms, num_states=num_states)
    engine.receive([Submit(1, Ask([5, 6, 8], None, SHAPED))])
    log = Log()
    forms.answer()
    log.step(engine)
    # Whoever lost its blocks comes back with a prompt of several tokens, and nothing is known yet.
    scheduler._put_back(scheduler.running[-1])
    log.step(engine, 2)
    assert (len(log.tokens[1]), forms.waits) == (1, 1)
    while 1 in forms.live:
        forms.answer()
        log.step(engine)
    assert log.tokens[1] == shaped_alone()


def test_whoever_loses_its_blocks_goes_on_with_its_form() -> None:
    forms = FakeForms()
    engine, scheduler, _, _ = fake_engine(num_blocks=5, rows=8, masks=forms)
    engine.receive(submits(FREE, SHAPED, FREE))
    log = Log()
    log.step(engine, 60)
    assert scheduler.num_preemptions
    assert log.tokens == {0: free(0), 1: shaped_alone(), 2: free(2)}


def test_a_form_that_breaks_a_limit_ends_its_request_alone() -> None:
    forms = FakeForms()
    forms.failing = {0: 0, 1: 1}
    engine, _, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms)
    engine.receive(submits(SHAPED, SHAPED, FREE, SHAPED))
    log = Log()
    log.step(engine, 30)
    assert [(f.request_id, f.reason, f.field) for f in log.failures] == [
        (0, "INVALID_FIELD", "sampling.structured_output.regex"),
        (1, "STRUCTURED_OUTPUT_FAILED", "sampling.structured_output.regex"),
    ]
    assert all(f"{failure.field} cannot be" in failure.message for failure in log.failures)
    assert len(log.tokens[1]) == 1
    assert log.tokens[2] == free(2)
    assert log.finishes[3] is Finish.STOP
    assert forms.live == {}


def test_a_form_that_breaks_a_limit_while_a_step_waits_for_it_leaves_nothing() -> None:
    forms = FakeForms(prompt=False)
    engine, scheduler, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms)
    engine.receive(submits(SHAPED))
    log = Log()
    forms.answer()
    log.step(engine)
    forms.failing, forms.answers_who_waits = {0: 1}, True
    log.step(engine)
    assert [failure.reason for failure in log.failures] == ["STRUCTURED_OUTPUT_FAILED"]
    assert forms.live == {} and not scheduler.running


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_who_is_cancelled_is_followed_no_more(num_steps: int) -> None:
    forms = FakeForms(prompt=num_steps > 0)
    engine, scheduler, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms)
    engine.receive(submits(SHAPED))
    Log().step(engine, num_steps)
    engine.receive([Cancel(0)])
    forms.answer()
    Log().step(engine, 2)
    assert forms.live == {}
    assert not scheduler.running and not scheduler.waiting


def test_a_reader_that_is_behind_gets_the_same_text_later() -> None:
    forms = FakeForms(prompt=False)
    engine, _, _, _ = fake_engine(num_blocks=40, rows=8, masks=forms)
    engine.receive([Submit(1, Ask([5, 6, 8], None, SHAPED))])
    forms.answer()
    log = Log()
    log.step(engine)
    engine.receive([Pause(1)])
    forms.answer()
    log.step(engine, 3)
    assert len(log.tokens[1]) == 1
    engine.receive([Resume(1)])
    while 1 in forms.live:
        forms.answer()
        log.step(engine)
    assert log.tokens[1] == shaped_alone()


class Certain(FakeModel):
    """Gives one token a chance, which no form allows."""

    def run(self, batch: object) -> torch.Tensor:
        logits_RV = super().run(batch)  # type: ignore[arg-type]
        return torch.where(logits_RV > 0, logits_RV, float("-inf"))


def test_a_model_that_gives_no_allowed_token_a_chance_ends_the_request_alone() -> None:
    engine, _, _, _ = fake_engine(num_blocks=40, rows=8, masks=FakeForms(), model=Certain())
    engine.receive(submits(SHAPED, FREE))
    log = Log()
    log.step(engine, 20)
    ((failure),) = log.failures
    assert (failure.request_id, failure.reason) == (0, "STRUCTURED_OUTPUT_FAILED")
    assert log.tokens == {1: free(1)}


def test_a_base_without_text_has_no_forms() -> None:
    engine, _, _, _ = fake_engine(num_blocks=40, rows=8)
    engine.receive(submits(SHAPED))
    log = Log()
    log.step(engine)
    (failure,) = log.failures
    assert (failure.reason, failure.field) == ("INVALID_FIELD", "sampling.structured_output.regex")


def test_what_has_no_bit_is_not_allowed() -> None:
    logits_V = torch.arange(20.0)
    kept_V = only_allowed(logits_V, bytes([0b10000001, 0b00000010]))
    assert torch.nonzero(kept_V.isfinite()).flatten().tolist() == [0, 7, 9]
    assert kept_V[9] == 9.0
    assert torch.equal(logits_V, torch.arange(20.0))
    few_V = only_allowed(torch.arange(3.0), bytes([0b10000110]))
    assert torch.nonzero(few_V.isfinite()).flatten().tolist() == [1, 2]
    assert [token for token in range(20) if has_bit(bytes([0, 3]), token)] == [8, 9]
