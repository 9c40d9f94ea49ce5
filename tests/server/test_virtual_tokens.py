"""Virtual tokens in the engine: shared, brought again, cut into chunks, and then forgotten."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import PreTrainedModel

from loramux_server.engine.base import Base
from loramux_server.engine.batch import Batch
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import sample
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling
from tests.parity.test_methods import save
from tests.support.adapters import Expected, expected, pack_source, with_adapter
from tests.support.engine import Harness, InlineExecutor
from tests.support.fake import BLOCK_SIZE, completion, fake_engine, fake_source
from tests.support.models import VOCAB, tiny_model

COUNT = 10  # two blocks of the harness and a half
KINDS: dict[str, PeftConfig] = {
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT),
}


@dataclass
class Prepared:
    """A base, an adapter of virtual tokens, and what PEFT makes of prompts with it."""

    model: PreTrainedModel
    source: AdapterSource
    wrapped: torch.nn.Module
    steps: list[Batch] = field(default_factory=list)

    def harness(self, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Harness:
        run = ModelRunner.run

        def noted(runner: ModelRunner, batch: Batch) -> torch.Tensor:
            self.steps.append(batch)
            return run(runner, batch)

        monkeypatch.setattr(ModelRunner, "run", noted)
        return Harness(copy.deepcopy(self.model), rows=64, **config)

    def expected(self, prompt: list[int], num_tokens: int) -> Expected:
        return expected(self.wrapped, prompt, num_tokens)


@pytest.fixture(params=KINDS)
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Prepared:
    model = tiny_model("llama")
    saved = save(model, copy.deepcopy(KINDS[request.param]), tmp_path / "saved", seed=3)
    return Prepared(model, pack_source(saved, tmp_path / "a.pkg"), with_adapter(model, saved))


def test_requests_of_an_adapter_share_the_blocks_of_its_virtual_tokens(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = prepared.harness(monkeypatch, num_blocks=40)
    shared = []
    for prompt in ([5, 6, 7], [8, 9, 10, 11], [5, 6, 12, 13, 14]):
        request = harness.submit(prompt, prepared.source, max_tokens=4)
        harness.run()
        assert harness.output(request) == prepared.expected(prompt, 4).tokens
        shared.append(harness.reports[-1].stats.shared_tokens)
    # Two blocks are the adapter's alone; the third request shares the two tokens after them, too.
    assert shared == [0, 8, 8 + 12]


def test_the_base_and_other_adapters_do_not_share_them(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = prepared.harness(monkeypatch, num_blocks=40)
    prompt = [0] * COUNT + [5, 6, 7]  # placeholders are such tokens
    harness.submit([5, 6, 7], prepared.source, max_tokens=4)
    harness.run()
    request = harness.submit(prompt, None, max_tokens=4)
    harness.run()
    assert harness.output(request) == expected(prepared.model, prompt, 4).tokens
    assert harness.reports[-1].stats.shared_tokens == 0


@pytest.mark.parametrize("max_batch_tokens", [3, 7, 64])
def test_chunks_may_end_before_at_and_after_the_border(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, max_batch_tokens: int
) -> None:
    harness = prepared.harness(monkeypatch, num_blocks=60, max_batch_tokens=max_batch_tokens)
    prompts = [[5], [8, 9, 10, 11], list(range(5, 25))]
    for prompt in prompts:
        harness.submit(prompt, prepared.source, max_tokens=5)
        harness.submit(prompt, None, max_tokens=5)
    harness.run()
    for number, prompt in enumerate(prompts):
        assert harness.output(2 * number) == prepared.expected(prompt, 5).tokens
        assert harness.output(2 * number + 1) == expected(prepared.model, prompt, 5).tokens


def test_who_lost_its_blocks_gets_its_virtual_tokens_again(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = prepared.harness(monkeypatch, num_blocks=13, prefix_cache=False)
    prompts = [[number, number + 1, number + 2] for number in range(5, 9)]
    for prompt in prompts:
        harness.submit(prompt, prepared.source, max_tokens=12)
    harness.run()
    assert harness.reports[-1].stats.preemptions
    for number, prompt in enumerate(prompts):
        assert harness.output(number) == prepared.expected(prompt, 12).tokens


def test_after_their_positions_a_step_is_one_of_the_base(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = prepared.harness(monkeypatch, num_blocks=40)
    harness.submit([5, 6, 7], prepared.source, max_tokens=4)
    harness.run()
    first, *others = (batch.input for batch in prepared.steps)
    (brought,) = (*first.embedded, *first.cached)
    assert brought.numbers == slice(0, COUNT)
    # Keys and values are not computed, embeddings are looked at.
    assert len(first.token_T) == 3 + (0 if prepared.source.has_cache else COUNT)
    assert len(others) == 3
    for given in others:
        assert not given.embedded
        assert not given.cached
    assert all(batch.input.segments is None for batch in prepared.steps)


def test_the_context_has_room_for_virtual_tokens_prompt_and_completion_together(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = prepared.harness(monkeypatch, num_blocks=40, max_context=20)
    longest = harness.submit(range(3, 12), prepared.source, max_tokens=5)
    longer = harness.submit(range(3, 13), prepared.source, max_tokens=5)
    harness.run()
    assert len(harness.output(longest)) == 1
    assert harness.tokens[longest][0].finish == "length"
    assert harness.failures[longer].reason == "CONTEXT_LENGTH_EXCEEDED"
    assert "20 tokens with those of its adapter" in harness.failures[longer].message


def test_a_prompt_of_virtual_tokens_alone_is_refused() -> None:
    engine, *_ = fake_engine(num_blocks=8, rows=8, executor=InlineExecutor())
    sampling = Sampling(max_tokens=3, seed=0, temperature=0.0)
    engine.receive([Submit(0, Ask([], fake_source(1, 8, num_virtual=5), sampling))])
    (failure,) = engine.step().failures
    assert failure.reason == "INVALID_FIELD"


@pytest.mark.parametrize("has_cache", [False, True])
def test_steps_that_run_ahead_find_them_too(has_cache: bool) -> None:
    engine, _, _, model = fake_engine(
        num_blocks=20, rows=8, runs_ahead=True, executor=InlineExecutor()
    )
    sampling = Sampling(max_tokens=6, seed=0, temperature=0.0, ignore_eos=True)
    count = 2 * BLOCK_SIZE + 1
    engine.receive(
        [
            Submit(
                0, Ask([5, 6], fake_source(1, 8, num_virtual=count, has_cache=has_cache), sampling)
            )
        ]
    )
    tokens = [token.token for _ in range(12) for token in engine.step().tokens]
    assert tokens == completion([5, 6], 1, 6, eos=False, num_virtual=count)
    assert model.num_ahead


def test_penalties_know_nothing_of_placeholders() -> None:
    sampling = Sampling(max_tokens=5, seed=0, temperature=0.0, repetition_penalty=2.0)
    asked = Submit(0, Ask([2], fake_source(1, 8, num_virtual=2), sampling))
    request = Request.of(asked, Base(BLOCK_SIZE, [1]), 0.0)
    ((sampled,),) = sample(torch.tensor([[3.0, 1.0, 5.0, 2.0]]), [request])
    assert sampled.token == 0  # 3.0 as it is, against 5.0 / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_base_stays_close_to_peft(
    dtype: torch.dtype, kind: str, tmp_path: Path
) -> None:
    model = tiny_model("llama").to(dtype)
    saved = save(model, copy.deepcopy(KINDS[kind]), tmp_path / "saved", seed=3)
    source = pack_source(saved, tmp_path / "a.pkg")
    prompt = list(range(3, 23))
    reference = expected(with_adapter(model, saved), prompt, 1).logprobs[0]
    harness = Harness(copy.deepcopy(model), kernels="cpu", rows=64, num_blocks=50)
    harness.submit(prompt, source, max_tokens=1, num_logprobs=VOCAB)
    harness.run()
    (token,) = harness.tokens[0]
    assert token.logprobs is not None
    ours = torch.tensor([logprob for _, logprob in sorted(token.logprobs.top)])
    epsilon = torch.finfo(dtype).eps
    assert (ours - reference).abs().max() < 16 * epsilon * reference.abs().max()


def test_what_comes_ready_is_not_counted_as_work() -> None:
    _, scheduler, *_ = fake_engine(num_blocks=40, rows=8)
    sampling = Sampling(max_tokens=3, seed=0)
    for number, (count, has_cache, own) in enumerate(((9, False, 12), (9, True, 3))):
        source = fake_source(number + 1, 8, num_virtual=count, has_cache=has_cache)
        request = Request(number, [5, 6, 7], source, sampling)
        assert scheduler.backlog.num_tokens_of(request) == own
        scheduler.add(request)
        # Of a block that is filled in part no more is known than that it is begun.
        assert scheduler.backlog.num_tokens_before(request) == 12
