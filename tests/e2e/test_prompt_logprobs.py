"""How likely the tokens of prompts are, over the real socket: as PEFT has it, once, and first."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from loramux import Client, Generation
from loramux.aio import AsyncClient
from loramux.errors import InvalidArgumentError
from loramux.types import PositionLogprobs
from tests.support.adapters import quiet_peft, with_adapter
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.scored import expected_logprobs
from tests.support.server import RunningServer

TEXT = "The quick brown fox"
TOKENS: list[int] = byte_tokenizer()(TEXT).input_ids
TOLERANCE = 1e-4
CONTEXT = 256


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def check(
    positions: tuple[PositionLogprobs, ...], tokens: list[int], wanted_TV: torch.Tensor, count: int
) -> None:
    """Hold what was told of a prompt against what PEFT says of it."""
    assert [position.chosen.token_id for position in positions] == tokens
    first, *others = positions
    assert math.isnan(first.chosen.logprob)
    assert (first.rank, first.top) == (None, ())
    for position, wanted_V in zip(others, wanted_TV, strict=True):
        chosen = position.chosen
        assert chosen.logprob == pytest.approx(float(wanted_V[chosen.token_id]), abs=TOLERANCE)
        assert position.rank is not None
        own = float(wanted_V[chosen.token_id])
        assert int((wanted_V > own + TOLERANCE).sum()) < position.rank
        assert position.rank <= int((wanted_V >= own - TOLERANCE).sum())
        assert [token.logprob for token in position.top] == pytest.approx(
            wanted_V.topk(count).values.tolist(), abs=TOLERANCE
        )
        assert (position.rank == 1) == (count > 0 and position.top[0].token_id == chosen.token_id)


@pytest.mark.parametrize("adapter", [None, "wide"])
@pytest.mark.parametrize("prompt", [TEXT, TOKENS], ids=["text", "tokens"])
def test_a_prompt_is_as_likely_as_peft_says(
    client: Client, tiny_adapters: Path, adapter: str | None, prompt: Any
) -> None:
    base = tiny_model("llama", vocab_size=259)
    wrapped = with_adapter(base, tiny_adapters / adapter if adapter else None)
    wanted = expected_logprobs(wrapped, TOKENS)
    answer = client.generate(prompt, adapter=adapter, prompt_logprobs=3, max_tokens=0)
    check(answer.prompt_logprobs, TOKENS, wanted, 3)
    assert b"".join(each.chosen.utf8 for each in answer.prompt_logprobs) == b"<s>" + TEXT.encode()
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(TOKENS), 0)
    assert answer.sampling["max_tokens"] == 0
    assert answer.sampling["prompt_logprobs"] == 3
    assert answer.timing.total_seconds > 0


def test_a_mix_is_scored_as_what_it_is(client: Client, tiny_adapters: Path) -> None:
    with quiet_peft():
        model = tiny_model("llama", vocab_size=259)
        wrapped = PeftModel.from_pretrained(model, str(tiny_adapters / "small"), "small")
        wrapped.load_adapter(str(tiny_adapters / "wide"), "wide")
        wrapped.base_model.add_weighted_adapter(
            ["small", "wide"], [0.5, -1.0], "mix", combination_type="cat"
        )
    wrapped.set_adapter("mix")
    answer = client.generate(
        TEXT, adapters={"small": 0.5, "wide": -1.0}, prompt_logprobs=2, max_tokens=0
    )
    check(answer.prompt_logprobs, TOKENS, expected_logprobs(wrapped.eval(), TOKENS), 2)


def test_messages_are_reported_as_the_tokens_that_they_make(chat_server: RunningServer) -> None:
    with chat_server.client() as client:
        talk: Any = [{"role": "user", "content": "Who are you?"}]
        spoken = client.chat(talk, adapter="own", prompt_logprobs=1, max_tokens=2, temperature=0)
        tokens = [each.chosen.token_id for each in spoken.prompt_logprobs]
        assert len(tokens) == spoken.usage.prompt_tokens
        direct = client.generate(tokens, adapter="own", prompt_logprobs=1, max_tokens=0)
    assert [each.chosen.logprob for each in direct.prompt_logprobs[1:]] == pytest.approx(
        [each.chosen.logprob for each in spoken.prompt_logprobs[1:]], abs=TOLERANCE
    )


def test_a_stream_reports_them_in_its_first_message_and_never_again(client: Client) -> None:
    # In the cache, so that the other completions begin before the first one has read it all.
    client.generate(TEXT * 5, adapter="rs", max_tokens=1)
    options: dict[str, Any] = {"n": 4, "max_tokens": 5, "seed": 1, "ignore_eos": True}
    chunks = list(client.stream(TEXT * 5, adapter="rs", prompt_logprobs=0, **options))
    whole = client.generate(TEXT * 5, adapter="rs", prompt_logprobs=0, **options)
    assert chunks[0].index == 0
    assert len(chunks[0].prompt_logprobs) == len(whole.prompt_logprobs) == 1 + 5 * len(TEXT)
    assert not any(chunk.prompt_logprobs for chunk in chunks[1:])
    for completion in whole.completions:
        pieces = [chunk for chunk in chunks if chunk.index == completion.index]
        assert sum((piece.token_ids for piece in pieces), ()) == completion.token_ids
        assert len(completion.token_ids) == 5
    plain = client.generate(TEXT * 5, adapter="rs", **options)
    assert [each.token_ids for each in plain.completions] == [
        each.token_ids for each in whole.completions
    ]
    assert plain.prompt_logprobs == ()


def test_what_is_cached_is_reported_and_such_a_prompt_takes_none_of_it(client: Client) -> None:
    prompt = "Said again and again, in the very same words. " * 3

    def cached(**options: Any) -> Generation:
        return client.generate(prompt, adapter="single", max_tokens=2, temperature=0, **options)

    scored = cached(prompt_logprobs=0)
    again = cached()
    assert scored.usage.cached_tokens == 0
    assert len(prompt) > again.usage.cached_tokens >= len(prompt) - 32
    assert cached(prompt_logprobs=0).usage.cached_tokens == 0
    # The one that found the fewest counts: the first alone has to compute the prompt.
    assert cached(n=2).usage.cached_tokens == again.usage.cached_tokens
    assert cached(n=2, prompt_logprobs=0).usage.cached_tokens == 0
    assert again.token_ids == scored.token_ids
    assert client.generate(prompt, max_tokens=1).usage.cached_tokens == 0  # of the base


def test_texts_that_are_read_report_what_was_cached(client: Client) -> None:
    prompt = "Embedded again and again, in the very same words. " * 3
    found = [client.embed([prompt, "x"], pooling="last").usage for _ in range(2)]
    assert found[0].cached_tokens == 0 < found[1].cached_tokens < found[1].prompt_tokens


async def test_the_asynchronous_client_reports_them_too(tiny_server: RunningServer) -> None:
    async with AsyncClient(tiny_server.target) as client:
        answer = await client.generate(TOKENS, prompt_logprobs=0, max_tokens=0)
        chunks = [chunk async for chunk in client.stream(TOKENS, prompt_logprobs=0, max_tokens=0)]
    (chunk,) = chunks
    assert (chunk.finish_reason, chunk.token_ids, chunk.text) == ("length", (), "")
    assert [each.rank for each in chunk.prompt_logprobs] == [
        each.rank for each in answer.prompt_logprobs
    ]
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 0


def test_a_prompt_may_fill_the_context_where_nothing_follows(client: Client) -> None:
    prompt = [5 + i % 200 for i in range(CONTEXT)]
    answer = client.generate(prompt, prompt_logprobs=0, max_tokens=0)
    assert len(answer.prompt_logprobs) == CONTEXT
    for options, says in (
        ({"prompt": prompt, "prompt_logprobs": 0}, "leaves no room for a completion"),
        ({"prompt": [*prompt, 5], "prompt_logprobs": 0, "max_tokens": 0}, "is smaller"),
    ):
        with pytest.raises(InvalidArgumentError, match=says) as caught:
            client.generate(**options)  # type: ignore[arg-type]
        assert (caught.value.reason, caught.value.field) == (
            "CONTEXT_LENGTH_EXCEEDED", "prompt_token_ids",
        )  # fmt: skip


def test_a_form_does_not_change_what_is_reported(client: Client) -> None:
    plain = client.generate(TEXT, prompt_logprobs=0, max_tokens=0)
    formed = client.generate(TEXT, prompt_logprobs=0, max_tokens=4, regex="[a-c]{3}")
    assert len(formed.text) == 3
    nothing = client.generate(TEXT, prompt_logprobs=0, max_tokens=0, regex="[a-c]{3}")
    for other in (formed, nothing):
        assert [each.rank for each in other.prompt_logprobs] == [
            each.rank for each in plain.prompt_logprobs
        ]
