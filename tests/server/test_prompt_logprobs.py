"""Log-probabilities of prompts in the engine: what is computed for them, when, and how often."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.engine import model_runner
from loramux_server.engine.batch import Batch, PromptTokens
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.kernels.prompt_logprobs import prompt_logprobs
from loramux_server.kernels.step_input import StepInput
from loramux_server.services.generation.prompt_logprobs import (
    MAX_PROMPT_LOGPROBS,
    check_prompt_logprobs,
)
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Finish, Submit
from loramux_server.wire.sampling import Sampling
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.fake import completion, fake_engine
from tests.support.models import VOCAB, tiny_model
from tests.support.scored import check_prompt_logprobs as check_numbers
from tests.support.scored import expected_logprobs

PROMPT = [3 + i % 60 for i in range(30)]
TOLERANCE = 1e-4


@pytest.fixture
def told_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of prompts each step told, of which it told any."""
    found: list[int] = []
    read = ModelRunner.read

    def noted(runner: ModelRunner, batch: Batch) -> Any:
        parts = [part for part in batch.read if isinstance(part, PromptTokens)]
        found.append(sum(len(part.tokens) for part in parts))
        return read(runner, batch)

    monkeypatch.setattr(ModelRunner, "read", noted)
    return found


def cached(harness: Harness, request_id: int) -> int:
    (found,) = (
        started.cached_tokens
        for report in harness.reports
        for started in report.started
        if started.request_id == request_id
    )
    return found


def test_such_a_prompt_takes_nothing_from_the_prefix_cache_and_fills_it() -> None:
    model = tiny_model("llama")
    harness = Harness(copy.deepcopy(model), num_blocks=60)
    first = harness.submit(PROMPT, max_tokens=0, num_prompt_logprobs=0)
    harness.run()
    second = harness.submit(PROMPT, max_tokens=4)
    harness.run()
    third = harness.submit(PROMPT, max_tokens=4, num_prompt_logprobs=2)
    harness.run()
    # All full blocks of 4 tokens before the last token are known.
    assert [cached(harness, request) for request in (first, second, third)] == [0, 28, 0]
    wanted = expected_logprobs(model, PROMPT)
    for request in (first, third):
        check_numbers(harness.prompt_logprobs(request), PROMPT, wanted, TOLERANCE)
    assert harness.output(second) == harness.output(third)
    assert harness.prompts[first].finish is Finish.LENGTH
    assert not harness.engine._requests
    assert not harness.engine._scheduler.running


def test_who_loses_its_blocks_goes_on_where_it_was(told_rows: list[int]) -> None:
    model = tiny_model("llama")
    harness = Harness(copy.deepcopy(model), num_blocks=12, max_batch_tokens=4)
    others = [harness.submit([5 + i] * 4, max_tokens=16) for i in range(2)]
    asked = harness.submit(PROMPT, max_tokens=6, num_prompt_logprobs=1)
    harness.run()
    assert harness.reports[-1].stats.preemptions > 0
    assert all(len(harness.output(request)) == 16 for request in others)
    assert len(harness.output(asked)) == 6
    wanted = expected_logprobs(model, PROMPT)
    check_numbers(harness.prompt_logprobs(asked), PROMPT, wanted, TOLERANCE)
    # What was told before is not told again, though keys and values are computed again.
    assert sum(told_rows) == len(PROMPT) - 1
    assert len(told_rows) > 2


def test_a_restarted_request_may_take_from_the_cache_what_was_reported() -> None:
    harness = Harness(tiny_model("llama"), num_blocks=60, max_batch_tokens=8)
    request = harness.submit(PROMPT, max_tokens=2, num_prompt_logprobs=0)
    for _ in range(3):
        harness.step()
    scheduler = harness.engine._scheduler
    (running,) = scheduler.running
    assert running.num_logprobs_done == 24
    shared = scheduler.num_shared_tokens
    scheduler.pause(running)
    scheduler.resume(running)
    harness.run()
    assert scheduler.num_shared_tokens - shared == 24
    assert len(harness.prompt_logprobs(request)) == 2 * (len(PROMPT) - 1)


def test_logits_of_a_long_prompt_are_never_in_memory_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    num_rows: list[int] = []
    logits = ModelRunner._logits

    def noted(runner: ModelRunner, given: StepInput) -> torch.Tensor:
        found = logits(runner, given)
        num_rows.append(len(found))
        return found

    monkeypatch.setattr(ModelRunner, "_logits", noted)
    monkeypatch.setattr(model_runner, "PIECE_BYTES", 7 * 4 * VOCAB)
    harness = Harness(copy.deepcopy(model), num_blocks=60, max_batch_tokens=64)
    request = harness.submit(PROMPT, max_tokens=0, num_prompt_logprobs=1)
    harness.run()
    wanted = expected_logprobs(model, PROMPT)
    check_numbers(harness.prompt_logprobs(request), PROMPT, wanted, TOLERANCE)
    assert num_rows == [0, 7, 7, 7, 7, 1]


def test_of_a_single_token_nothing_is_reported() -> None:
    harness = Harness(tiny_model("llama"), num_blocks=20)
    found = [harness.submit([7], max_tokens=size, num_prompt_logprobs=3) for size in (0, 2)]
    harness.run()
    assert [harness.prompts[each].numbers for each in found] == [b"", b""]
    assert [harness.prompts[each].finish for each in found] == [Finish.LENGTH, None]
    assert [len(harness.output(each)) for each in found] == [0, 2]


def test_a_prompt_may_be_as_long_as_the_context_where_nothing_follows_it() -> None:
    model = tiny_model("llama")
    harness = Harness(copy.deepcopy(model), num_blocks=8, max_batch_tokens=7)
    prompt = [*PROMPT, 9, 8]
    request = harness.submit(prompt, max_tokens=0, num_prompt_logprobs=0)
    refused = harness.submit(prompt, max_tokens=1, num_prompt_logprobs=0)
    longer = harness.submit([*prompt, 3], max_tokens=0, num_prompt_logprobs=0)
    harness.run()
    wanted = expected_logprobs(model, prompt)
    check_numbers(harness.prompt_logprobs(request), prompt, wanted, TOLERANCE)
    for other in (refused, longer):
        assert harness.failures[other].reason == "CONTEXT_LENGTH_EXCEEDED"


def test_a_prompt_that_overflows_ends_alone_and_reports_nothing(tmp_path: Path) -> None:
    model = tiny_model("llama")
    saved = save_adapter(model, tmp_path / "a", seed=9, r=8, target_modules="all-linear")
    path = saved / "adapter_model.safetensors"
    save_file({name: weight * 1e18 for name, weight in load_file(path).items()}, path)
    source = pack_source(saved, tmp_path / "a.package")
    harness = Harness(copy.deepcopy(model), rows=64, num_blocks=60)
    bad = [
        harness.submit(PROMPT, source, max_tokens=size, num_prompt_logprobs=2 * size)
        for size in (0, 1)
    ]
    good = harness.submit(PROMPT, max_tokens=2, num_prompt_logprobs=0)
    harness.run()
    for each in bad:
        assert harness.failures[each].reason == "ADAPTER_NOT_FINITE"
        assert each not in harness.prompts
        assert not harness.output(each)
    wanted = expected_logprobs(model, PROMPT)
    check_numbers(harness.prompt_logprobs(good), PROMPT, wanted, TOLERANCE)


def test_others_run_ahead_again_once_all_is_reported() -> None:
    engine, _, _, model = fake_engine(num_blocks=40, rows=64, runs_ahead=True, max_batch_tokens=4)
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    for number, count in enumerate((None, 0)):
        sampling = Sampling(
            max_tokens=12, seed=0, temperature=0.0, ignore_eos=True, num_prompt_logprobs=count
        )
        engine.receive([Submit(number, Ask(prompt, None, sampling))])
    found: dict[int, list[int]] = {0: [], 1: []}
    told_after = None
    for _ in range(60):
        report = engine.step()
        for token in report.tokens:
            found[token.request_id].append(token.token)
        if report.prompts:
            told_after = model.num_ahead
    wanted = completion(prompt, 0, 12, eos=False)
    assert found == {0: wanted, 1: wanted}
    assert told_after is not None
    assert model.num_ahead > told_after + 5


@pytest.mark.parametrize("count", [0, 3, 9])
def test_rows_are_reported_as_their_definition_says(count: int) -> None:
    rng = random.Random(count)
    # Halves, so that many tokens are as likely as others.
    logits_RV = torch.tensor([[rng.randrange(8) / 2 for _ in range(9)] for _ in range(12)])
    logits_RV[3, 4] = -torch.inf
    token_R = torch.tensor([rng.randrange(9) for _ in range(12)])
    found = prompt_logprobs(logits_RV, token_R, count)
    assert found.shape == (12, 2 + 2 * count)
    for row, logits_V, token in zip(found.tolist(), logits_RV, token_R.tolist(), strict=True):
        order = sorted(range(9), key=lambda each: (-float(logits_V[each]), each))
        wanted_V = logits_V.log_softmax(-1)
        assert row[0] == order.index(token) + 1
        assert row[1] == pytest.approx(float(wanted_V[token]), abs=1e-6)
        assert row[2 + count :] == order[:count]
        assert row[2 : 2 + count] == pytest.approx(wanted_V[order[:count]].tolist(), abs=1e-6)
    for bad in (torch.nan, torch.inf):
        logits_RV[5, 2] = bad
        is_nan = prompt_logprobs(logits_RV, token_R, count).isnan()
        assert is_nan[5].all()
        assert not is_nan[:5].any()
        assert not is_nan[6:].any()


def test_as_many_are_reported_as_fit_an_answer() -> None:
    params = generation_pb2.SamplingParams(prompt_logprobs=3)
    check_prompt_logprobs(params, MAX_PROMPT_LOGPROBS // 4)
    with pytest.raises(
        InvalidArgumentError, match=f"is 3; .* {MAX_PROMPT_LOGPROBS + 4} log-prob"
    ) as caught:
        check_prompt_logprobs(params, MAX_PROMPT_LOGPROBS // 4 + 1)
    assert (caught.value.field, caught.value.reason) == (
        "sampling.prompt_logprobs", "INVALID_FIELD",
    )  # fmt: skip
    check_prompt_logprobs(generation_pb2.SamplingParams(), MAX_PROMPT_LOGPROBS + 1)
