"""Logits -> tokens, by distribution and not by look."""

from collections import Counter
from typing import Any

import msgspec
import pytest
import torch

from loramux_server.engine.base import Base
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import Sampled, sample, uniform
from loramux_server.engine.token_counts import counts_of
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling
from tests.support.fake import fake_source

EOS = [1]

LOGITS = [2.0, 1.0, 0.0, -1.0, 3.0]


def request(
    prompt: list[int] | None = None, output: list[int] | None = None, **sampling: object
) -> Request:
    options = Sampling(**{"max_tokens": 10, "seed": 0} | sampling)  # type: ignore[arg-type]
    counts = counts_of(options, prompt or [2], EOS, len(LOGITS))
    return Request(0, prompt or [2], None, options, output=output or [], counts=counts)


def first(
    logits_RV: torch.Tensor, requests: list[Request], vocab_size: int | None = None
) -> list[Sampled]:
    """Return the only token of each request."""
    return [sampled for (sampled,) in sample(logits_RV, requests, vocab_size)]


def choose(logits: list[float], **options: object) -> int:
    (sampled,) = first(torch.tensor([logits]), [request(**options)])  # type: ignore[arg-type]
    return sampled.token


def frequencies(logits: list[float], **sampling: object) -> list[float]:
    """Return how often each token was chosen, over many seeds."""
    count = 4000
    requests = [request(**sampling | {"seed": seed}) for seed in range(count)]  # type: ignore[arg-type]
    rows = torch.tensor([logits]).expand(count, -1)
    counts = Counter(sampled.token for sampled in first(rows, requests))
    return [counts[token] / count for token in range(len(logits))]


def test_tokens_that_others_have_change_nothing() -> None:
    wide = [*LOGITS, float("-inf"), float("-inf")]
    for options in ({"temperature": 0.0, "num_logprobs": 5}, {"top_p": 0.9}, {"min_tokens": 3}):
        for seed in range(20):
            asked = request(seed=seed, stop_token_ids=frozenset({6}), **options)
            alone = first(torch.tensor([LOGITS]), [asked], 5)
            beside = first(torch.tensor([wide]), [asked], 5)
            assert beside == alone


def test_sampling_follows_the_softmax() -> None:
    wanted = torch.softmax(torch.tensor(LOGITS), 0).tolist()
    assert frequencies(LOGITS) == pytest.approx(wanted, abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 3.0):
        wanted = torch.softmax(torch.tensor(LOGITS) / temperature, 0).tolist()
        assert frequencies(LOGITS, temperature=temperature) == pytest.approx(wanted, abs=0.03)


def test_top_k_keeps_the_likeliest() -> None:
    kept = torch.softmax(torch.tensor([3.0, 2.0]), 0).tolist()
    wanted = [kept[1], 0, 0, 0, kept[0]]
    assert frequencies(LOGITS, top_k=2) == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(
    ("own", "top_k", "wanted"), [(0, 7, 7), (0, 8, 0), (0, 9, 0), (10, 9, 9), (10, 10, 0)]
)
def test_top_k_of_all_tokens_is_none(own: int, top_k: int, wanted: int) -> None:
    source = msgspec.structs.replace(fake_source(1, 8), vocab_size=own)
    asked = Submit(0, Ask([2], source, Sampling(max_tokens=1, seed=0, top_k=top_k)))
    assert Request.of(asked, Base(4, vocab_size=8), 0.0).sampling.top_k == wanted


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    # Probabilities 0.64, 0.23, 0.09, 0.03, 0.01: the first two reach 0.8, the first alone 0.6.
    assert frequencies(LOGITS, top_p=0.8)[1:4] == [0, 0, 0]
    assert frequencies(LOGITS, top_p=0.6) == [0, 0, 0, 0, 1]


def test_top_p_counts_within_what_top_k_left() -> None:
    # Of the two that top_k leaves the first has 0.73: it alone reaches 0.7.
    assert frequencies(LOGITS, top_k=2, top_p=0.7) == [0, 0, 0, 0, 1]


def test_top_p_looks_behind_the_first_candidates() -> None:
    flat = [0.0] * 5000
    seen = {
        first(torch.tensor([flat]), [request(top_p=0.9, seed=seed)])[0].token for seed in range(300)
    }
    assert len(seen) > 250


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert frequencies(LOGITS, min_p=0.2)[1:4] == [0, 0, 0]
    assert all(frequencies(LOGITS, min_p=0.001))


def test_greedy_takes_the_likeliest() -> None:
    assert choose(LOGITS, temperature=0.0) == 4
    assert choose(LOGITS, temperature=1e-45) == 4


def test_a_bias_moves_the_choice() -> None:
    assert choose(LOGITS, temperature=0.0, logit_bias={3: 100.0}) == 3
    assert choose(LOGITS, temperature=0.0, logit_bias={4: -100.0}) == 0


def test_penalties_apply_to_what_was_said() -> None:
    assert choose(LOGITS, temperature=0.0, output=[4], presence_penalty=2.0) == 0
    assert choose(LOGITS, temperature=0.0, output=[4], frequency_penalty=0.6) == 4
    assert choose(LOGITS, temperature=0.0, output=[4, 4], frequency_penalty=0.6) == 0
    assert choose(LOGITS, temperature=0.0, prompt=[4], presence_penalty=2.0) == 4
    assert choose(LOGITS, temperature=0.0, prompt=[4], repetition_penalty=2.0) == 0
    negative = [-1.0, -1.5, -9.0]
    assert choose(negative, temperature=0.0, output=[0], repetition_penalty=2.0) == 1


def test_end_tokens_wait_for_the_minimum() -> None:
    ending = [0.0, 9.0, 1.0, 5.0]
    assert choose(ending, temperature=0.0) == 1
    assert choose(ending, temperature=0.0, min_tokens=1) == 3
    assert choose(ending, temperature=0.0, min_tokens=1, output=[2]) == 1
    assert choose(ending, temperature=0.0, min_tokens=1, stop_token_ids=frozenset({3})) == 2
    assert choose(ending, temperature=0.0, min_tokens=1, ignore_eos=True) == 1


def test_logprobs_are_of_the_models_own_distribution() -> None:
    (sampled,) = first(
        torch.tensor([LOGITS]),
        [request(temperature=0.3, top_k=1, logit_bias={2: 50.0}, num_logprobs=2)],
    )
    raw = torch.log_softmax(torch.tensor(LOGITS), 0).tolist()
    assert sampled.token == 2
    assert sampled.logprobs is not None
    assert sampled.logprobs.chosen == pytest.approx(raw[2], abs=1e-5)
    assert [token for token, _ in sampled.logprobs.top] == [4, 0]
    assert [value for _, value in sampled.logprobs.top] == pytest.approx([raw[4], raw[0]], abs=1e-5)


def test_a_row_that_is_not_finite_is_reported_and_harms_no_other() -> None:
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([LOGITS, [0.0, nan, 1.0, 2.0, 3.0], [inf, 0, 0, 0, 0], LOGITS])
    found = first(rows, [request(temperature=0.0)] * 4)
    fault = "ADAPTER_NOT_FINITE"
    assert [sampled.fault for sampled in found] == [None, fault, fault, None]
    assert found[0].token == found[3].token == 4


def test_parameters_that_cannot_be_used_end_their_own_request_only() -> None:
    rows = torch.tensor([LOGITS, LOGITS])
    found = first(rows, [request(num_logprobs=1000), request(temperature=0.0)])
    assert [sampled.fault for sampled in found] == ["INTERNAL", None]
    assert found[1].token == 4


def test_a_seed_decides_whatever_the_neighbours() -> None:
    rows = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    ways: list[dict[str, Any]] = [
        {}, {"top_p": 0.9}, {"num_logprobs": 2}, {"repetition_penalty": 1.5, "top_k": 20},
    ]  # fmt: skip
    requests = [request(seed=seed, **ways[seed % 4]) for seed in range(8)]
    together = [sampled.token for sampled in first(rows, requests)]
    alone = [first(rows[i : i + 1], [requests[i]])[0].token for i in range(8)]
    assert together == alone


def test_random_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
