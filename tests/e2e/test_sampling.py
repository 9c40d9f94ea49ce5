"""How tokens are chosen and where completions end, over the real socket."""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux import Client, Completion, FinishReason
from loramux.types import PositionLogprobs
from tests.conftest import ADAPTERS
from tests.support.adapters import with_adapter
from tests.support.models import byte_tokenizer, bytes_of, tiny_model
from tests.support.server import RunningServer

VOCAB = 259
EOS = 2
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"temperature": 1.5, "max_tokens": 16, "ignore_eos": True}
ALL_ADAPTERS = [None, *ADAPTERS]


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def text_of(tokens: tuple[int, ...]) -> str:
    return str(byte_tokenizer().decode(list(tokens), skip_special_tokens=True))


def raw_logprobs(
    folder: Path, adapter: str | None, prompt: list[int], tokens: tuple[int, ...]
) -> torch.Tensor:
    """What PEFT says at each position of `tokens`, as [number of tokens, vocabulary]."""
    base = tiny_model("llama", vocab_size=VOCAB)
    model = with_adapter(base, folder / adapter if adapter else None)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float(), -1)


# Which token


@pytest.mark.parametrize("adapter", [None, "wide"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1e-45},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 100.0, "top_k": 1, "top_p": 0.5, "min_p": 0.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_leaves_one_token_takes_the_likeliest(
    client: Client, adapter: str | None, options: dict[str, Any]
) -> None:
    done = client.generate(
        "hello", adapter=adapter, max_tokens=16, ignore_eos=True, logprobs=1, **options
    )
    for position in done.logprobs:
        assert position.chosen == position.top[0]


@pytest.mark.parametrize(
    "options",
    [{"top_p": 1.0}, {"min_p": 0.0}, {"top_k": 0}, {"top_k": -1}, {"top_k": VOCAB}, {"n": 1},
     {"repetition_penalty": 1.0}, {"presence_penalty": 0.0}, {"frequency_penalty": 0.0}],
    ids=lambda options: "-".join(map(str, *options.items())),
)  # fmt: skip
def test_a_neutral_value_changes_nothing(client: Client, options: dict[str, Any]) -> None:
    plain = client.generate("hello", adapter="wide", seed=3, **SAMPLED)
    same = client.generate("hello", adapter="wide", seed=3, **SAMPLED, **options)
    assert same.token_ids == plain.token_ids


@pytest.mark.parametrize("top_k", [2, 7])
def test_top_k_keeps_the_k_likeliest(client: Client, top_k: int) -> None:
    done = client.generate(
        "hello", seed=1, top_k=top_k, logprobs=top_k, temperature=100.0, max_tokens=64,
        ignore_eos=True,
    )  # fmt: skip
    ranks = Counter(
        [token.token_id for token in position.top].index(position.chosen.token_id)
        for position in done.logprobs
    )
    assert set(ranks) == set(range(top_k))


def test_top_p_keeps_the_likeliest_until_their_sum(client: Client) -> None:
    done = client.generate(
        "hello", seed=1, top_p=0.3, logprobs=20, temperature=1.0, max_tokens=64, ignore_eos=True
    )
    for position in done.logprobs:
        likelier = [t for t in position.top if t.logprob > position.chosen.logprob]
        assert torch.tensor([token.logprob for token in likelier]).exp().sum() < 0.3 + 1e-4


def test_min_p_drops_what_is_unlikely_beside_the_likeliest(client: Client) -> None:
    done = client.generate(
        "hello", seed=1, min_p=0.25, logprobs=1, temperature=1.0, max_tokens=64, ignore_eos=True
    )
    for position in done.logprobs:
        least = position.top[0].logprob + torch.tensor(0.25).log()
        assert position.chosen.logprob >= least - 1e-4


def test_a_seed_gives_the_same_tokens_in_any_company(client: Client) -> None:
    def sampled(seed: int, adapter: str | None) -> tuple[int, ...]:
        return client.generate("hello", adapter=adapter, seed=seed, **SAMPLED).token_ids

    requests = [(seed, adapter) for seed in range(6) for adapter in ALL_ADAPTERS]
    alone = [sampled(*request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        crowded = list(pool.map(lambda request: sampled(*request), requests))
    assert crowded == alone
    assert len(set(alone)) == len(alone)


def test_without_a_seed_completions_differ(client: Client) -> None:
    answers = {client.generate("hello", **SAMPLED).token_ids for _ in range(4)}
    assert len(answers) == 4


def test_the_completions_of_one_seed_are_those_of_the_seeds_after_it(client: Client) -> None:
    last = 2**63 - 1
    several = client.generate("hello", n=3, seed=last, **SAMPLED)
    assert [completion.index for completion in several.completions] == [0, 1, 2]
    for completion, seed in zip(several.completions, (last, -(2**63), -(2**63) + 1), strict=True):
        alone = client.generate("hello", seed=seed, **SAMPLED)
        assert completion.token_ids == alone.token_ids


def test_a_bias_forces_a_token_or_forbids_it(client: Client) -> None:
    forced = client.generate("hello", logit_bias={70: 100.0}, **SAMPLED)
    assert set(forced.token_ids) == {70}
    usual = set(client.generate("hello", **GREEDY).token_ids)
    without = client.generate("hello", logit_bias=dict.fromkeys(usual, -100.0), **GREEDY)
    assert not usual & set(without.token_ids)


@pytest.mark.parametrize("adapter", [None, "wide"])
@pytest.mark.parametrize(
    ("presence", "frequency"), [(2.0, 0.0), (-2.0, 0.0), (0.0, 1.5), (0.0, -1.5), (1.0, 0.5)]
)
def test_presence_and_frequency_penalties_are_subtracted_from_what_came_before(
    client: Client, adapter: str | None, presence: float, frequency: float
) -> None:
    done = client.generate(
        "hello", adapter=adapter, presence_penalty=presence, frequency_penalty=frequency,
        logprobs=20, temperature=0.0, max_tokens=48, ignore_eos=True,
    )  # fmt: skip
    seen: Counter[int] = Counter()
    for position in done.logprobs:
        values = {
            token.token_id: token.logprob
            - presence * (token.token_id in seen)
            - frequency * seen[token.token_id]
            for token in (position.chosen, *position.top)
        }
        assert values[position.chosen.token_id] >= max(values.values()) - 1e-4
        seen[position.chosen.token_id] += 1
    plain = client.generate(
        "hello", adapter=adapter, temperature=0.0, max_tokens=48, ignore_eos=True
    )
    assert done.token_ids != plain.token_ids


def test_log_probabilities_have_the_bytes_of_parts_of_characters(client: Client) -> None:
    done = client.generate("hello", choice=["\u20ac"], logprobs=0, max_tokens=9)
    assert done.text == "\u20ac"
    reported = [position.chosen.utf8 for position in done.logprobs]
    assert reported[:3] == [b"\xe2", b"\x82", b"\xac"]
    (plain,) = client.generate("hello", logprobs=2, max_tokens=1, temperature=0.0).logprobs
    assert plain.top[0] == plain.chosen
    assert len({token.utf8 for token in plain.top}) == 2


def test_a_repetition_penalty_keeps_tokens_from_coming_again(client: Client) -> None:
    prompt = bytes_of("hello")
    plain = client.generate(prompt, **GREEDY).token_ids
    penalized = client.generate(prompt, repetition_penalty=100.0, **GREEDY).token_ids
    favoured = client.generate(prompt, repetition_penalty=0.01, **GREEDY).token_ids
    assert len(set(plain)) < len(plain)
    assert len(set(penalized)) == len(penalized)
    assert not set(penalized) & set(prompt)
    assert set(favoured) <= set(prompt) | {favoured[0]}


# Log-probabilities


@pytest.mark.parametrize("adapter", ALL_ADAPTERS)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 1, "top_p": 0.9},
        {"temperature": 0.7, "seed": 2, "presence_penalty": 2.0, "repetition_penalty": 1.5,
         "logit_bias": {70: 5.0}, "min_tokens": 8},
    ],
    ids=["greedy", "sampled", "penalized"],
)  # fmt: skip
def test_logprobs_are_those_of_the_model_itself(
    client: Client, tiny_adapters: Path, adapter: str | None, options: dict[str, Any]
) -> None:
    prompt = [1, *bytes_of("hello")]
    done = client.generate(prompt, adapter=adapter, logprobs=5, max_tokens=12, **options)
    expected_TV = raw_logprobs(tiny_adapters, adapter, prompt, done.token_ids)
    assert len(done.logprobs) == len(done.token_ids)
    for position, token, expected_V in zip(done.logprobs, done.token_ids, expected_TV, strict=True):
        assert position.chosen.token_id == token
        assert position.chosen.logprob == pytest.approx(float(expected_V[token]), abs=1e-3)
        assert [t.logprob for t in position.top] == pytest.approx(
            expected_V.topk(5).values.tolist(), abs=1e-3
        )
        for top in position.top:
            assert top.logprob == pytest.approx(float(expected_V[top.token_id]), abs=1e-3)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_as_many_logprobs_come_as_were_asked_for(client: Client, count: int) -> None:
    chunks = list(client.stream("hello", adapter="rs", logprobs=count, seed=1, **SAMPLED))
    positions: tuple[PositionLogprobs, ...] = sum((chunk.logprobs for chunk in chunks), ())
    assert len(positions) == SAMPLED["max_tokens"]
    for position in positions:
        assert len({token.token_id for token in position.top}) == count
        logprobs = [token.logprob for token in position.top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert all(token.logprob <= 0 for token in (position.chosen, *position.top))
    assert client.generate("hello", adapter="rs", seed=1, **SAMPLED).logprobs == ()


# Where it ends


def only(client: Client, **options: Any) -> Completion:
    (completion,) = client.generate("hello", **options).completions
    return completion


def letters(*characters: str) -> dict[int, float]:
    """A bias that leaves nothing but `characters`."""
    return {bytes_of(character)[0]: 100.0 for character in characters}


def test_max_tokens_ends_a_completion(client: Client) -> None:
    for count in (1, 2, 250):
        done = only(client, temperature=0.0, ignore_eos=True, max_tokens=count)
        assert len(done.token_ids) == count
        assert done.finish_reason is FinishReason.LENGTH
        assert (done.stop_string, done.stop_token_id) == (None, None)


def test_without_max_tokens_the_context_ends_a_completion(client: Client) -> None:
    done = client.generate("hello", temperature=0.0, ignore_eos=True)
    assert len(done.token_ids) == 256 - done.usage.prompt_tokens
    assert done.finish_reason is FinishReason.LENGTH


def test_the_end_token_of_the_model_ends_a_completion(client: Client) -> None:
    done = only(client, logit_bias={EOS: 100.0}, max_tokens=8)
    assert done.token_ids == (EOS,)
    assert (done.finish_reason, done.stop_token_id, done.text) == (FinishReason.STOP, EOS, "")


def test_ignore_eos_goes_on_after_the_end_token(client: Client) -> None:
    forced: dict[str, Any] = {"logit_bias": {EOS: 100.0}, "max_tokens": 8, "ignore_eos": True}
    done = only(client, **forced)
    assert done.token_ids == (EOS,) * 8
    assert (done.finish_reason, done.stop_token_id, done.text) == (FinishReason.LENGTH, None, "")
    assert only(client, skip_special_tokens=False, **forced).text == "</s>" * 8


def test_a_stop_token_ends_a_completion(client: Client) -> None:
    usual = only(client, **GREEDY).token_ids
    stop = usual[7]
    done = only(client, stop_token_ids=[stop, 3], **GREEDY)
    assert done.token_ids == usual[: usual.index(stop) + 1]
    assert (done.finish_reason, done.stop_token_id) == (FinishReason.STOP, stop)
    assert done.stop_string is None


@pytest.mark.parametrize("end", [EOS, 70])
def test_min_tokens_keeps_an_end_token_from_coming_early(client: Client, end: int) -> None:
    done = only(
        client, logit_bias={end: 100.0}, stop_token_ids=[70], min_tokens=5, max_tokens=20, seed=1
    )
    assert end not in done.token_ids[:5]
    assert done.token_ids[5:] == (end,)
    assert (done.finish_reason, done.stop_token_id) == (FinishReason.STOP, end)


def test_a_stop_string_ends_a_completion_across_tokens(client: Client) -> None:
    done = only(client, logit_bias=letters("a"), stop=["aaa"], max_tokens=20)
    assert len(done.token_ids) == 3
    assert done.text == ""
    assert (done.finish_reason, done.stop_string) == (FinishReason.STOP, "aaa")
    assert done.stop_token_id is None


def test_include_stop_keeps_the_stop_string(client: Client) -> None:
    done = only(client, logit_bias=letters("a"), stop=["aaa"], include_stop=True, max_tokens=20)
    assert (done.text, done.stop_string) == ("aaa", "aaa")


def test_a_stop_string_counts_after_min_tokens(client: Client) -> None:
    done = only(client, logit_bias=letters("a"), stop=["aaa"], min_tokens=5, max_tokens=20)
    assert 5 < len(done.token_ids) < 20
    assert (done.finish_reason, done.stop_string) == (FinishReason.STOP, "aaa")
    assert len(done.text) == len(done.token_ids) - 3


def test_a_stop_string_that_only_begins_stays_in_the_text(client: Client) -> None:
    done = only(client, logit_bias=letters("a"), stop=["aaab"], max_tokens=20)
    assert (done.text, done.finish_reason) == ("a" * 20, FinishReason.LENGTH)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("include_stop", [False, True], ids=["cut-off", "kept"])
def test_a_stream_ends_at_the_first_stop_string(
    client: Client, seed: int, include_stop: bool
) -> None:
    options: dict[str, Any] = {
        "logit_bias": letters("a", "b"), "seed": seed, "temperature": 10.0, "max_tokens": 40,
    }  # fmt: skip
    stops = ["abba", "bbb", "\u20ac"]
    whole = only(client, **options).text
    ends = {whole.find(stop) + len(stop): stop for stop in stops if stop in whole}
    assert ends, "a seed whose text has no stop string shows nothing: choose others"
    end = min(ends)
    chunks = list(client.stream("hello", stop=stops, include_stop=include_stop, **options))
    assert "".join(chunk.text for chunk in chunks) == (
        whole[:end] if include_stop else whole[: end - len(ends[end])]
    )
    assert [chunk.stop_string for chunk in chunks if chunk.finish_reason] == [ends[end]]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == end


def test_each_completion_ends_for_itself(client: Client) -> None:
    options: dict[str, Any] = {
        "logit_bias": letters("a", "b"), "seed": 1, "temperature": 10.0, "max_tokens": 12,
        "stop": ["bb"], "n": 8,
    }  # fmt: skip
    done = client.generate("hello", **options)
    reasons = {completion.finish_reason for completion in done.completions}
    assert len({len(completion.token_ids) for completion in done.completions}) > 2
    assert FinishReason.STOP in reasons
    pieces = list(client.stream("hello", **options))
    for completion in done.completions:
        own = [piece for piece in pieces if piece.index == completion.index]
        assert "".join(piece.text for piece in own) == completion.text
        assert [piece.finish_reason for piece in own if piece.finish_reason] == [
            completion.finish_reason
        ]
    assert [piece.usage for piece in pieces if piece.usage] == [done.usage]
    assert done.usage.completion_tokens == sum(len(c.token_ids) for c in done.completions)


# Text


@pytest.mark.parametrize("character", ["\u00e9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize("adapter", [None, "wide"])
def test_a_character_of_several_bytes_is_never_split(
    client: Client, character: str, adapter: str | None
) -> None:
    options: dict[str, Any] = {
        "logit_bias": dict.fromkeys(bytes_of(character), 100.0), "temperature": 10.0, "seed": 1,
        "n": 8, "max_tokens": 150, "logprobs": 0,
    }  # fmt: skip
    chunks = list(client.stream("hello", adapter=adapter, **options))
    whole = client.generate("hello", adapter=adapter, **options)
    found = 0
    for index in range(8):
        own = [chunk for chunk in chunks if chunk.index == index]
        text = "".join(chunk.text for chunk in own)
        decoded = text_of(sum((chunk.token_ids for chunk in own), ()))
        # Its bytes in a random order are the character here and there.
        assert text == whole.completions[index].text == decoded
        reported = b"".join(each.chosen.utf8 for chunk in own for each in chunk.logprobs)
        assert reported.decode(errors="replace") == text
        found += text.count(character)
    assert found


def test_the_end_of_the_prompt_is_no_part_of_the_text(client: Client) -> None:
    euro = bytes_of("\u20ac")
    for prompt, after in itertools.product(([], bytes_of("abc\u00e9")), ([], euro[:1], euro[:2])):
        done = client.generate(
            [1, *prompt, *after], logit_bias=letters("a"), max_tokens=6, temperature=0.0
        )
        assert done.text == "aaaaaa"
