"""Drafts: they decide when a token comes, never which."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from loramux_server.engine import output_history
from loramux_server.engine.acceptance_rates import AcceptanceRates
from loramux_server.engine.ends import Ends
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import sample
from loramux_server.engine.speculation import Speculation
from loramux_server.engine.token_counts import counts_of
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Cancel, Drop, Submit
from loramux_server.wire.sampling import Sampling
from tests.server.test_running_ahead import CHOICES
from tests.support.engine import Harness
from tests.support.fake import (
    BLOCK_SIZE,
    EOS,
    VOCAB,
    FakeModel,
    ManualClock,
    SlowModel,
    completion,
    fake_engine,
    fake_source,
)
from tests.support.models import VOCAB as VOCAB_OF_TINY
from tests.support.models import tiny_model

A, B = fake_source(1, 8), fake_source(2, 16)
PROMPT = [5, 6, 7, 8, 9]
LIKELIEST = completion(PROMPT, 1, 12, eos=False)
"""What adapter A makes of it."""


@dataclass
class Asking:
    """An engine that is asked one thing after the other, and what it did."""

    most: int = 8
    num_blocks: int = 60
    model: FakeModel | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    runs_ahead: bool = False
    drafted: int = 0
    accepted: int = 0
    num_steps: int = 0
    found: dict[int, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine, self.scheduler, _, self.fake = fake_engine(
            num_blocks=self.num_blocks, rows=64, speculative_tokens=self.most, model=self.model,
            clock=self.clock, max_running=32, max_batch_tokens=64, runs_ahead=self.runs_ahead,
        )  # fmt: skip

    def submit(
        self, prompt: list[int] = PROMPT, adapter: AdapterSource | None = A, *, tenant: str = "",
        prediction: list[int] | None = None, **sampling: Any,
    ) -> int:  # fmt: skip
        defaults = {"max_tokens": 12, "seed": 0, "temperature": 0.0, "ignore_eos": True}
        chosen = Sampling(**defaults | sampling)
        number = len(self.found)
        self.found[number] = []
        message = Submit(number, Ask(prompt, adapter, chosen, tenant, prediction=prediction or []))
        self.engine.receive([message])
        return number

    def step(self) -> None:
        executor = self.engine._residents._executor
        while len(executor):  # type: ignore[arg-type]
            executor.finish()  # type: ignore[attr-defined]
        report = self.engine.step()
        self.engine.check()
        assert not report.failures
        for token in report.tokens:
            self.found[token.request_id].append(token)
        if report.batch:
            self.num_steps += 1
            self.drafted += report.batch.drafted
            self.accepted += report.batch.accepted

    def run(self) -> None:
        for _ in range(400):
            self.step()
            if not (self.scheduler.running or self.scheduler.waiting):
                return
        raise AssertionError("it does not end")

    def ask(self, *args: Any, **kwargs: Any) -> list[int]:
        number = self.submit(*args, **kwargs)
        self.run()
        return [token.token for token in self.found[number]]


def test_what_an_adapter_wrote_comes_again_in_a_few_steps() -> None:
    subject = Asking()
    assert subject.ask() == LIKELIEST
    assert (subject.accepted, subject.num_steps) == (0, 12)
    assert subject.ask() == LIKELIEST
    assert subject.num_steps < 24
    before = subject.num_steps
    assert subject.ask() == LIKELIEST
    assert subject.num_steps - before < 6


def test_wrong_drafts_change_nothing() -> None:
    subject = Asking()
    for number in range(8):
        prompt = [10 + number, *PROMPT]
        assert subject.ask(prompt) == completion(prompt, 1, 12, eos=False)
    assert subject.drafted > subject.accepted


def test_a_text_that_ends_is_drafted_to_its_end() -> None:
    prompts = [[number, 6, 7, 8, 9] for number in range(2, 60)]
    texts = [completion(prompt, 1, 12, eos=True) for prompt in prompts]
    number = next(i for i, text in enumerate(texts) if EOS in text and 3 < len(text) < 9)
    subject = Asking()
    for _ in range(4):
        assert subject.ask(prompts[number], ignore_eos=False) == texts[number]
    assert subject.accepted
    assert subject.found[3][-1].finish == "stop"


def test_a_draft_goes_on_behind_a_stop_and_no_further_than_max_tokens() -> None:
    subject = Asking()
    for _ in range(3):
        subject.ask()
    stops = frozenset({LIKELIEST[2]})
    assert subject.ask(stop_token_ids=stops, ignore_eos=False) == LIKELIEST[:3]
    assert subject.ask(max_tokens=2) == LIKELIEST[:2]
    assert subject.ask(max_tokens=1) == LIKELIEST[:1]
    assert subject.ask(max_tokens=12) == LIKELIEST


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("choices", CHOICES.values(), ids=list(CHOICES))
def test_all_that_is_reported_is_the_same(choices: list[dict[str, Any]], runs_ahead: bool) -> None:
    plain, drafting = Asking(most=0), Asking(runs_ahead=runs_ahead)
    for subject in (plain, drafting):
        for _ in range(3):
            for number, adapter in enumerate([None, A, B, A]):
                options = {"max_tokens": 20, "seed": number, **choices[number % len(choices)]}
                subject.submit([*PROMPT, number], adapter, **options)
            subject.run()
    assert drafting.found == plain.found
    assert drafting.accepted > 10
    assert drafting.num_steps < plain.num_steps


def test_steps_run_ahead_until_there_is_something_to_draft() -> None:
    subject = Asking(runs_ahead=True)
    assert subject.ask() == LIKELIEST
    assert subject.fake.num_ahead > 8
    for _ in range(3):
        subject.ask()
    accepted, ahead = subject.accepted, subject.fake.num_ahead
    assert subject.ask() == LIKELIEST
    assert subject.accepted - accepted > 7
    assert subject.fake.num_ahead - ahead < 3


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_who_ends_in_flight_is_followed_no_more(is_cancelled: bool) -> None:
    subject = Asking(runs_ahead=True)
    stop = frozenset() if is_cancelled else frozenset({LIKELIEST[3]})
    ending, other = subject.submit(stop_token_ids=stop), subject.submit([3, 4, 5], None)
    for _ in range(4):
        subject.step()
    if is_cancelled:
        subject.engine.receive([Cancel(ending)])
    subject.run()  # each step checks who is followed
    assert subject.fake.num_ahead > 6
    assert [token.token for token in subject.found[other]] == completion(
        [3, 4, 5], 0, 12, eos=False
    )


def test_a_prediction_comes_sooner_where_it_is_right() -> None:
    subject = Asking()
    wrong = [*LIKELIEST[:5], 63, *LIKELIEST[6:]]
    assert subject.ask(prediction=wrong) == LIKELIEST
    assert subject.accepted > 3
    assert subject.drafted > subject.accepted
    assert subject.num_steps < 10
    base = completion(PROMPT, 0, 12, eos=False)
    assert subject.ask(adapter=None, prediction=[3] * 300) == base


def test_tenants_learn_nothing_of_each_other() -> None:
    subject = Asking()
    for tenant in ("a", "a", "b"):
        before = subject.accepted
        subject.ask(tenant=tenant)
    assert subject.accepted == before > 0
    assert subject.ask(tenant="a", adapter=B) == completion(PROMPT, 2, 12, eos=False)
    assert subject.accepted == before


def test_what_a_dropped_adapter_wrote_is_forgotten() -> None:
    subject = Asking()
    subject.ask()
    subject.engine.receive([Drop(A.digest)])
    subject.step()
    subject.ask()
    assert subject.accepted == 0


def test_who_ends_early_is_followed_no_more() -> None:
    subject = Asking()
    subject.ask()
    number = subject.submit()
    subject.step()
    subject.step()
    subject.engine.receive([Cancel(number)])
    subject.step()  # which checks that nothing is kept of it
    assert not subject.scheduler.running
    assert subject.ask() == LIKELIEST


def test_blocks_of_a_wrong_draft_are_given_back() -> None:
    subject = Asking(num_blocks=12)
    subject.submit(prediction=[*LIKELIEST[:2], 63, 62, 61, 60, 59, 58, 57])
    num_seen = 0
    while len(subject.found[0]) < 12:
        subject.step()
        for request in subject.scheduler.running:
            num_seen += 1
            assert len(request.blocks) <= -(-request.num_tokens // BLOCK_SIZE)
    assert subject.drafted > subject.accepted > 0
    assert num_seen > 4


def test_no_draft_takes_a_block_that_others_could_use() -> None:
    subject = Asking(num_blocks=6)
    long = [11, 12, 13, 14, 15, 16, 17, 18]
    subject.ask(long, max_tokens=1)  # its two blocks are remembered
    number = subject.submit(
        [5, 6, 7], max_tokens=9, prediction=completion([5, 6, 7], 1, 9, eos=False)
    )
    subject.run()
    assert [t.token for t in subject.found[number]] == completion([5, 6, 7], 1, 9, eos=False)
    assert subject.accepted
    shared = subject.scheduler.num_shared_tokens
    subject.ask([*long, 19])
    assert subject.scheduler.num_shared_tokens == shared + len(long)


def test_a_draft_leaves_room_for_the_last_token_of_the_context() -> None:
    text = completion(PROMPT, 1, 19, eos=False)
    subject = Asking(num_blocks=6)  # and so 24 tokens
    assert subject.ask(max_tokens=100, prediction=text + [3] * 20) == text
    assert subject.accepted > 8
    assert subject.found[0][-1].finish == "length"


@pytest.mark.parametrize(
    ("end", "ignores_eos", "is_end"), [(EOS, False, True), (EOS, True, False), (9, True, True)]
)
def test_a_draft_ends_with_the_text(end: int, ignores_eos: bool, is_end: bool) -> None:
    subject = Speculation(8, Ends(1 << 30, frozenset([EOS])))
    sampling = Sampling(
        max_tokens=99, seed=0, ignore_eos=ignores_eos, stop_token_ids=frozenset({9})
    )
    prediction = [5, end] + [4] * 8
    request = Request(0, [20, 21, 22, 23], None, sampling, prediction=prediction)
    (draft,) = subject.drafts([Chunk(request, 0, 4)], 99, 0.0).values()
    assert list(draft) == prediction[: 2 if is_end else len(draft)]
    assert is_end or len(draft) > 2


def test_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("KEPT", 60), ("OF_ADAPTER", 40), ("ADAPTERS", 3), ("ENDED", 4)):
        monkeypatch.setattr(output_history, f"_MOST_{name}", most)
    subject = Asking()
    for number in range(6):
        subject.ask(adapter=fake_source(number + 1, 8))
        subject.ask(adapter=fake_source(number + 1, 8))
        subject.step()
    kept = subject.engine._speculation._histories._histories
    assert 0 < len(kept) <= 3
    assert all(len(each.texts) <= 40 for each in kept.values())
    assert 0 < sum(len(each.texts) for each in kept.values()) <= 60
    for _ in range(9):
        subject.submit(max_tokens=1)
    subject.run()
    assert len(subject.engine._speculation._histories._ended) <= 4


def test_long_texts_are_taken_in_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_history, "_MOST_AT_ONCE", 5)
    subject = Asking()
    for _ in range(4):
        assert subject.ask() == LIKELIEST
    assert subject.accepted > 8


def test_what_an_adapter_writes_while_it_is_dropped_is_not_kept() -> None:
    subject = Asking()
    number = subject.submit()
    while not subject.found[number]:
        subject.step()
    subject.engine.receive([Drop(A.digest)])
    subject.run()
    subject.ask()
    assert subject.accepted == 0


def test_a_prediction_with_a_token_that_there_is_not_is_refused() -> None:
    model = Harness(tiny_model("llama"), speculative_tokens=4)
    right = model.submit([3, 4, 5], max_tokens=2, prediction=[VOCAB_OF_TINY - 1])
    wrong = model.submit([3, 4, 5], max_tokens=2, prediction=[5, 1 << 40])
    model.run()
    assert model.failures[wrong].reason == "INVALID_FIELD"
    assert "prediction" in model.failures[wrong].message
    assert len(model.tokens[right]) == 2


def drafted_beside(num_others: int) -> float:
    """Return how many tokens a step drafts for each request, where tokens cost a tenth of it."""
    clock = ManualClock()
    subject = Asking(
        clock=clock, num_blocks=400, model=SlowModel(clock, step_seconds=1.0, token_seconds=0.1)
    )
    subject.ask(list(range(2, 62)) * 2 + PROMPT)  # a long prompt, so that the cost is known
    requests = [(PROMPT, A)] * (1 + num_others)
    for _ in range(3):
        for prompt, adapter in requests:
            subject.submit(prompt, adapter)
        drafted, steps = subject.drafted, subject.num_steps
        subject.run()
    return (subject.drafted - drafted) / len(requests) / (subject.num_steps - steps)


def test_a_full_batch_has_fewer_drafts() -> None:
    assert drafted_beside(0) > drafted_beside(12) > drafted_beside(30)


def test_acceptance_rates_follow_what_happens() -> None:
    rates = AcceptanceRates()
    assert rates.of(0) == pytest.approx(0.5)
    assert rates.of(3) > rates.of(0)
    for _ in range(100):
        rates.record(0, is_right=False)
    assert rates.of(0) < 0.05
    for _ in range(100):
        rates.record(0, is_right=True)
    assert rates.of(0) > 0.7


@pytest.mark.parametrize("num_right", [0, 1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 2.0, "top_p": 0.9},
        {"temperature": 2.0, "frequency_penalty": 1.5, "num_logprobs": 3},
        {"temperature": 0.0, "repetition_penalty": 3.0, "min_tokens": 4},
    ],
)
def test_several_tokens_are_chosen_as_one_after_the_other(
    options: dict[str, Any], num_right: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_RV = 3 * torch.randn(4, VOCAB, generator=generator)

    def asked() -> Request:
        sampling = Sampling(**{"max_tokens": 9, "seed": 5} | options)
        return Request(0, PROMPT, None, sampling, counts=counts_of(sampling, PROMPT, [EOS]))

    single, wanted = asked(), []
    for row in logits_RV:
        ((sampled,),) = sample(row[None], [single])
        wanted.append(sampled)
        single.output.append(sampled.token)
    draft = [one.token for one in wanted[:num_right]]
    draft += [(one.token + 1) % VOCAB for one in wanted[num_right:3]]
    other, subject = asked(), asked()
    rows = torch.cat([logits_RV[:1], logits_RV])
    beside, found = sample(rows, [other, subject], drafts={subject: draft})
    assert beside == wanted[:1]
    assert found == wanted[: num_right + 1]


def test_a_row_that_is_not_finite_ends_a_request_after_the_tokens_before_it() -> None:
    logits_RV = torch.zeros(3, VOCAB)
    logits_RV[0, 7] = logits_RV[2, 9] = 1.0
    logits_RV[1] = torch.nan
    subject = Request(0, PROMPT, None, Sampling(max_tokens=9, seed=0, temperature=0.0))
    (right,) = sample(logits_RV, [subject], drafts={subject: [7, 9]})
    assert [(one.token, one.fault) for one in right] == [(7, None), (0, "ADAPTER_NOT_FINITE")]
    (wrong,) = sample(logits_RV, [subject], drafts={subject: [8, 9]})
    assert [(one.token, one.fault) for one in wrong] == [(7, None)]
