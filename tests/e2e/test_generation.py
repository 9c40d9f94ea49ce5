"""Generation over a real socket, from a real engine process."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from loramux import AsyncClient, FinishReason, SamplingOptions
from loramux.errors import NotFoundError
from tests.conftest import ADAPTERS
from tests.support.models import byte_tokenizer
from tests.support.server import RunningServer

GREEDY = SamplingOptions(temperature=0.0, max_tokens=12, ignore_eos=True)


def test_each_adapter_answers_with_its_identity(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        for name in ADAPTERS:
            done = client.generate("hello", adapter=name, **GREEDY)
            assert done.adapter is not None
            assert done.adapter.name == name
            assert done.adapter.digest == client.adapters.get(name).digest
            assert len(done.token_ids) == 12
            assert done.finish_reason is FinishReason.LENGTH
            assert done.usage.prompt_tokens == len("hello") + 1  # and the prefix <s>


def test_no_adapter_means_the_base_model(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        base = client.generate("hello", **GREEDY)
        assert base.adapter is None
        answers = {client.generate("hello", adapter=n, **GREEDY).token_ids for n in ADAPTERS}
        assert base.token_ids not in answers
        assert len(answers) == len(ADAPTERS)


def test_an_unknown_adapter_is_not_found(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client, pytest.raises(NotFoundError, match="'nobody'") as caught:
        client.generate("hello", adapter="nobody")
    assert caught.value.reason == "ADAPTER_NOT_FOUND"
    assert caught.value.field == "adapter"


def test_a_stream_is_the_answer_in_pieces(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        whole = client.generate("hello", adapter="wide", **GREEDY)
        chunks = list(client.stream("hello", adapter="wide", **GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert chunks[0].adapter == whole.adapter
    assert chunks[-1].usage == whole.usage
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_token_ids_are_a_prompt_too(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        as_text = client.generate("ab", adapter="rs", **GREEDY)
        as_tokens = client.generate(byte_tokenizer()("ab").input_ids, adapter="rs", **GREEDY)
    assert as_text.token_ids == as_tokens.token_ids


async def test_the_asynchronous_client_answers_alike(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        whole = client.generate("hello", adapter="rs", **GREEDY)
    async with AsyncClient(tiny_server.target) as client:
        assert (await client.generate("hello", adapter="rs", **GREEDY)).text == whole.text
        pieces = [chunk.text async for chunk in client.stream("hello", adapter="rs", **GREEDY)]
        assert "".join(pieces) == whole.text
        names = [adapter.name for adapter in await client.adapters.list()]
        assert names == sorted(ADAPTERS)
        assert (await client.info()).vocab_size == 259


def test_a_mixed_batch_equals_each_request_alone(tiny_server: RunningServer) -> None:
    requests = [
        (f"prompt {i}" * (1 + i % 3), adapter) for i, adapter in enumerate([*ADAPTERS, None] * 4)
    ]
    with tiny_server.client() as client:
        alone = [client.generate(p, adapter=a, **GREEDY).token_ids for p, a in requests]
        before = tiny_server.metrics()
        with ThreadPoolExecutor(len(requests)) as pool:
            together = list(
                pool.map(lambda r: client.generate(r[0], adapter=r[1], **GREEDY), requests)
            )
        after = tiny_server.metrics()
    assert [done.token_ids for done in together] == alone
    # They did share batches: fewer steps than tokens.
    steps = "loramux_step_seconds_count"
    assert after[steps] - before[steps] < sum(len(tokens) for tokens in alone)


def test_n_completions_differ_and_repeat_with_their_seed(tiny_server: RunningServer) -> None:
    options = SamplingOptions(max_tokens=16, temperature=2.0)
    four = SamplingOptions(**options, n=4, seed=7)
    with tiny_server.client() as client:
        first = client.generate("hello", adapter="rs", **four)
        again = client.generate("hello", adapter="rs", **four)
        third = client.generate("hello", adapter="rs", **SamplingOptions(**options, seed=9))
    texts = [completion.token_ids for completion in first.completions]
    assert len(set(texts)) == 4
    assert texts == [completion.token_ids for completion in again.completions]
    assert third.token_ids == texts[2]
    assert first.usage.completion_tokens == sum(map(len, texts))
