"""What a caller thinks that will come: the same tokens in fewer steps, over the real socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux import Client
from loramux.aio import AsyncClient
from tests.support.models import byte_tokenizer
from tests.support.polling import eventually
from tests.support.server import RunningServer

PROMPT = "Once upon a time"
NUM_TOKENS = 64
ASCII = set(byte_tokenizer()("".join(map(chr, range(32, 127)))).input_ids[1:])
SAMPLED: dict[str, Any] = {
    "max_tokens": NUM_TOKENS,
    "seed": 3,
    "ignore_eos": True,
    # So that the text of a completion says which tokens it has, and nothing in it comes twice.
    "logit_bias": {token: -100.0 for token in range(259) if token not in ASCII},
    "temperature": 2.0,
}


@pytest.fixture(scope="module")
def drafting(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> Iterator[RunningServer]:
    """A server that drafts, and has seen no text before."""
    arguments = ("--adapters", str(tiny_adapters), "--speculative-tokens", "8")
    with RunningServer(tmp_path_factory.mktemp("drafting"), tiny_base, *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


def steps(server: RunningServer) -> float:
    """Return how many steps the engine of an idle server has made."""
    assert eventually(lambda: not server.metrics()["loramux_requests_running"])
    return server.metrics()["loramux_step_seconds_count"]


def test_what_is_predicted_comes_in_fewer_steps_and_is_the_same(
    client: Client, drafting: RunningServer
) -> None:
    kinds = {"small": "none", "wide": "text", "rs": "ids", "single": "wrong"}

    def are_fewer(seed: int) -> bool:
        taken: dict[str, float] = {}
        # Each with an adapter of its own: what it wrote before is drafted from, too.
        for adapter, kind in kinds.items():
            options = SAMPLED | {"adapter": adapter, "seed": seed}
            wanted = client.generate(PROMPT, **options)
            assert len(wanted.token_ids) == NUM_TOKENS
            predicted: dict[str, Any] = {
                "none": "", "text": wanted.text, "ids": wanted.token_ids,
                "wrong": wanted.text[::-1],
            }  # fmt: skip
            with drafting.client() as asked:
                before = steps(drafting)
                found = asked.generate(PROMPT, prediction=predicted[kind], **options)
                taken[kind] = steps(drafting) - before
            assert found.token_ids == wanted.token_ids
            assert found.usage == wanted.usage
        return min(taken["none"], taken["wrong"]) > 2 * max(taken["text"], taken["ids"])

    # Where the machine is busy, drafts can look too dear for a while.
    assert any(are_fewer(seed) for seed in range(3, 9))


async def test_every_way_to_ask_takes_a_prediction(
    client: Client, drafting: RunningServer, chat_server: RunningServer
) -> None:
    wanted = client.generate(PROMPT, **SAMPLED)
    options: dict[str, Any] = SAMPLED | {"prediction": wanted.text}

    def takes_few_steps() -> bool:
        before = steps(drafting)
        with drafting.client() as asked:
            chunks = list(asked.stream(PROMPT, **options))
        assert sum((chunk.token_ids for chunk in chunks), ()) == wanted.token_ids
        return steps(drafting) - before < NUM_TOKENS / 2

    assert any(takes_few_steps() for _ in range(6))  # a busy machine as above
    async with AsyncClient(drafting.target) as other:
        assert (await other.generate(PROMPT, **options)).token_ids == wanted.token_ids
    talk: Any = [{"role": "user", "content": "Who are you?"}]
    with chat_server.client() as chatting:
        said = chatting.chat(talk, adapter="own", max_tokens=8, temperature=0.0)
        again = chatting.chat(
            talk, adapter="own", max_tokens=8, temperature=0.0, prediction=said.text
        )
    assert again.token_ids == said.token_ids


def test_a_text_of_a_form_takes_no_notice(drafting: RunningServer) -> None:
    with drafting.client() as asked:
        options: dict[str, Any] = {"max_tokens": 8, "regex": "[a-c]{4}", "temperature": 0.0}
        wanted = asked.generate(PROMPT, **options)
        found = asked.generate(PROMPT, prediction="abca", **options)
        assert found.token_ids == wanted.token_ids
