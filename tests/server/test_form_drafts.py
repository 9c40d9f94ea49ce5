"""Drafts of texts that have a form: the same tokens, each among those that its own place allows."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from loramux_server.engine.request import Request
from loramux_server.engine.request_parts import Shape
from loramux_server.engine.sampler import sample
from loramux_server.engine.token_counts import counts_of
from loramux_server.forms.form import Form, FormKind
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Failure, Submit, Token
from loramux_server.wire.sampling import Sampling
from tests.support.fake import EOS, VOCAB, FakeModel, completion, fake_engine
from tests.support.fake_forms import FakeForms, bits

LONG = Form(FormKind.REGEX, "twelve tokens, one of three each")
OTHER = Form(FormKind.REGEX, "the same six, and then others")
PLACES = [range(10 + number, 13 + number) for number in range(12)]
END = range(EOS, EOS + 1)
STEPS = {LONG: [*PLACES, END], OTHER: [*PLACES[:6], *(range(40, 44) for _ in range(6)), END]}
PROMPT = [5, 6, 7, 8, 9]


@dataclass
class Asking:
    """An engine that is asked for texts with forms, and what it did."""

    most: int = 8
    forms: FakeForms = field(default_factory=lambda: FakeForms(steps=STEPS))
    model: FakeModel | None = None
    num_blocks: int = 60
    num_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    found: dict[int, list[Token]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine, self.scheduler, _, _ = fake_engine(
            num_blocks=self.num_blocks, rows=8, masks=self.forms, model=self.model,
            speculative_tokens=self.most, max_batch_tokens=64,
        )  # fmt: skip

    def submit(self, form: Form | None = LONG, prompt: list[int] = PROMPT, **options: Any) -> int:
        number = len(self.found)
        self.found[number] = []
        sampling = Sampling(**{"max_tokens": 20, "seed": 3, "form": form} | options)
        self.engine.receive([Submit(number, Ask(prompt, None, sampling))])
        return number

    def step(self) -> None:
        report = self.engine.step()
        self.engine.check()
        for token in report.tokens:
            self.found[token.request_id].append(token)
        self.failures += report.failures
        if report.batch:
            self.num_steps += 1
            self.drafted += report.batch.drafted
            self.accepted += report.batch.accepted

    def run(self) -> None:
        for _ in range(300):
            if not (self.scheduler.running or self.scheduler.waiting):
                assert self.forms.live == {}
                return
            self.step()
        raise AssertionError("it does not end")

    def ask(self, form: Form = LONG, **options: Any) -> list[int]:
        number = self.submit(form, **options)
        self.run()
        return [token.token for token in self.found[number]]


CHOICES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 3.0},
    {"temperature": 3.0, "top_p": 0.8, "num_logprobs": 3},
    {"temperature": 2.0, "frequency_penalty": 1.5, "logit_bias": {12: 4.0, 15: 4.0}},
    {"temperature": 3.0, "stop_token_ids": frozenset({19, 20, 21})},
    {"temperature": 3.0, "max_tokens": 9},
]


@pytest.mark.parametrize("options", CHOICES)
def test_all_that_is_reported_is_the_same_in_fewer_steps(options: dict[str, Any]) -> None:
    plain, drafting = Asking(most=0), Asking()
    for subject in (plain, drafting):
        for number in range(4):
            for seed in (1, 1, 2):
                subject.submit(**options | {"seed": seed})
            subject.submit(OTHER, **options)
            subject.submit(None, [*PROMPT, number], ignore_eos=True)
            subject.run()
    assert drafting.found == plain.found
    assert drafting.accepted > 10
    assert drafting.num_steps < plain.num_steps
    assert not drafting.forms.waits


def test_a_text_that_was_written_before_comes_in_a_few_steps_to_its_end() -> None:
    subject = Asking()
    text = subject.ask()
    before = subject.num_steps
    for _ in range(3):
        assert subject.ask() == text
    assert text[-1] == EOS and len(text) == 13
    assert subject.found[3][-1].finish == "stop"
    assert (before, subject.num_steps - before < 15) == (13, True)


def test_a_draft_holds_as_far_as_the_form_allows_it() -> None:
    plain, subject = Asking(most=0), Asking()
    for one in (plain, subject):
        for _ in range(4):
            one.ask()
        one.drafted = one.accepted = 0
        one.ask(OTHER)
    assert subject.found == plain.found
    # The text is the same up to a place, and no more than that was right.
    assert 0 < subject.accepted <= 6 < subject.drafted


def test_what_a_form_forces_is_drafted_where_nothing_was_written_before() -> None:
    plain, subject = Asking(most=0), Asking()
    text = plain.ask(temperature=0.0)
    subject.forms.forced = {0: text[:5], 7: [*text[7:9], 63]}
    assert subject.ask(temperature=0.0) == text
    assert subject.forms.seen[0] == (0, text[:5])
    assert subject.num_steps < plain.num_steps - 5


def test_what_is_forced_goes_on_behind_the_tokens_that_were_chosen() -> None:
    subject = Asking()
    text = Asking(most=0).ask(temperature=0.0)
    subject.forms.forced, subject.forms.prompt = {0: text[:12]}, False
    number = subject.submit(temperature=0.0)
    subject.forms.answer()
    subject.forms.answers_who_waits = True
    subject.run()
    assert [token.token for token in subject.found[number]] == text
    assert subject.forms.seen == [(0, text[:7]), (0, text[8:12])]
    assert subject.num_steps == 2


def test_of_what_is_forced_and_what_was_written_before_the_likelier_is_drafted() -> None:
    plain, subject = Asking(most=0), Asking()
    before, text = (plain.ask(seed=seed) for seed in (1, 2))
    subject.ask(seed=1)
    subject.forms.forced = {number: text[number:12] for number in range(12)}
    assert subject.ask(seed=2) == text
    assert subject.num_steps == 13 + 2
    for _ in range(9):  # from now on it is wrong
        subject.num_steps = 0
        assert subject.ask(seed=1) == before
    assert subject.num_steps < 9


def test_what_is_said_to_be_forced_changes_nothing() -> None:
    plain, subject = Asking(most=0), Asking()
    subject.forms.forced = {number: [12 + number, 13 + number] for number in range(11)}
    for seed in range(6):
        assert subject.ask(seed=seed) == plain.ask(seed=seed)
    assert subject.drafted > subject.accepted


@pytest.mark.parametrize("prompt", [False, True])
def test_a_draft_of_which_nothing_is_known_in_time_ends_and_is_the_last(prompt: bool) -> None:
    plain, subject = Asking(most=0), Asking(most=4)
    for one in (plain, subject):
        for _ in range(3):
            one.ask()
    subject.forms.prompt, subject.forms.answers_who_waits = prompt, not prompt
    before = len(subject.forms.seen)
    number = subject.submit()
    subject.forms.answer()
    subject.step()
    assert len(subject.found[number]) == 5
    assert len(subject.forms.seen) == before + 1
    subject.forms.supports_drafts, subject.forms.waits = False, 0
    subject.run()
    # The second one was too late, and had no third.
    assert [token.token for token in subject.found[number]] == plain.ask()
    assert len(subject.forms.seen) == before + 2
    assert subject.forms.waits == 1 or not prompt
    subject.forms.supports_drafts = subject.forms.prompt = True
    assert subject.ask() == plain.ask()
    assert len(subject.forms.seen) > before + 3


@pytest.mark.parametrize("answers_who_waits", [False, True])
def test_what_comes_next_may_be_known_late(answers_who_waits: bool) -> None:
    plain, subject = Asking(most=0), Asking()
    text = plain.ask()
    for _ in range(3):
        subject.ask()
    subject.forms.prompt, subject.forms.answers_who_waits = False, answers_who_waits
    number = subject.submit()
    subject.forms.answer()
    while number in subject.forms.live:
        subject.step()
        subject.step()
        if not answers_who_waits:
            subject.forms.answer()
    assert [token.token for token in subject.found[number]] == text


def test_a_form_that_breaks_a_limit_behind_a_draft_ends_its_request_there() -> None:
    plain, subject = Asking(most=0), Asking()
    for one in (plain, subject):
        for _ in range(3):
            one.ask()
        one.forms.failing = {3: 6, 4: 0}
        numbers = [one.submit(), one.submit(), one.submit()]
        one.run()
        assert {(f.request_id, f.reason) for f in one.failures} == {
            (3, "STRUCTURED_OUTPUT_FAILED"),
            (4, "INVALID_FIELD"),
        }
        assert [len(one.found[number]) for number in numbers] == [6, 0, 13]
    assert subject.found == plain.found
    assert subject.accepted


def test_whoever_loses_its_blocks_goes_on_with_its_form() -> None:
    plain, subject = Asking(most=0, num_blocks=9), Asking(num_blocks=9)
    for one in (plain, subject):
        for _ in range(3):
            for seed in (1, 1, 2):
                one.submit(seed=seed)
            one.run()
    assert subject.found == plain.found
    assert plain.scheduler.num_preemptions and subject.accepted


class Choosy(FakeModel):
    """Gives only some tokens a chance, which at one place no form allows."""

    def run(self, batch: object) -> torch.Tensor:
        logits_RV = super().run(batch)  # type: ignore[arg-type]
        logits_RV[:, 16:19] = float("-inf")
        return logits_RV


def test_a_model_that_gives_no_allowed_token_a_chance_ends_the_request_there() -> None:
    plain, subject = Asking(most=0, model=Choosy()), Asking(model=Choosy())
    for one in (plain, subject):
        for _ in range(5):
            one.ask()
        assert {f.reason for f in one.failures} == {"STRUCTURED_OUTPUT_FAILED"}
        assert len(one.failures) == 5
    assert subject.found == plain.found
    assert subject.accepted


def test_a_neighbour_without_a_form_is_what_it_is_alone() -> None:
    subject = Asking()
    for _ in range(3):
        subject.submit()
        number = subject.submit(None, ignore_eos=True, temperature=0.0)
        subject.run()
    alone = completion(PROMPT, 0, 20, eos=False)
    assert [token.token for token in subject.found[number]] == alone


def test_each_token_is_chosen_among_those_of_its_own_place() -> None:
    logits_RV = 3 * torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    allowed = [bits(range(8 * place, 8 * place + 6)) for place in range(4)]

    def asked() -> Request:
        sampling = Sampling(max_tokens=9, seed=5, temperature=2.0, form=LONG, num_logprobs=2)
        return Request(0, PROMPT, None, sampling, counts=counts_of(sampling, PROMPT, [EOS]))

    single, wanted = asked(), []
    for row_V, here in zip(logits_RV, allowed, strict=True):
        single.shape.allowed = here
        ((sampled,),) = sample(row_V[None], [single])
        wanted.append(sampled)
        single.output.append(sampled.token)
    draft = [one.token for one in wanted[:3]]
    for num_known in range(4):
        subject = asked()
        subject.shape = Shape(allowed[0], allowed[1 : num_known + 1])
        (found,) = sample(logits_RV, [subject], drafts={subject: draft})
        assert found[: num_known + 1] == wanted[: num_known + 1]
        assert [one.is_deferred for one in found[num_known + 1 :]] == [True] * (num_known < 3)


def test_a_row_that_is_put_off_has_no_token_that_could_be_the_drafted_one() -> None:
    sampling = Sampling(max_tokens=9, seed=5, form=LONG)
    subject = Request(0, PROMPT, None, sampling, shape=Shape(draft_masks=[bits([0]), bits([0])]))
    (found,) = sample(torch.zeros(3, VOCAB), [subject], drafts={subject: [0, 0]})
    assert [one.is_deferred for one in found] == [True]
