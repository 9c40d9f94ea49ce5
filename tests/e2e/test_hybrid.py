"""A server of a model some of whose layers are recurrent: it does all that it does for others."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig

from loramux import Client
from loramux.errors import InvalidArgumentError, ResourceExhaustedError
from loramux.types import Chunk
from tests.e2e.test_prompt_logprobs import check as check_prompt
from tests.parity.test_beams import check as check_beams
from tests.parity.test_beams import searched
from tests.parity.test_methods import save, virtual_configs
from tests.support.adapters import expected, save_adapter, with_adapter
from tests.support.embedders import expected_states, vector_of
from tests.support.models import byte_tokenizer, save_model, tiny_model
from tests.support.polling import eventually
from tests.support.scored import expected_logprobs
from tests.support.server import RunningServer

VOCAB = 259
BLOCK = 4
MAX_RUNNING = 4
STATE_BYTES = 12_800
"""What recurrent layers of the tiny base know of a request."""
TARGETS = {
    "one": ["in_proj_qkv", "out_proj", "q_proj"],
    "two": ["in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "k_proj", "v_proj", "down_proj"],
}
"""LoRA adapter -> layers that it changes, recurrent and others."""
NAMES = (None, *TARGETS)
PROMPT = "The quick brown fox"
TOKENS: list[int] = byte_tokenizer()(PROMPT).input_ids
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True}


@dataclass(frozen=True)
class Hybrid:
    """The server, and what PEFT makes of its adapters."""

    server: RunningServer
    base: Path
    models: dict[str | None, torch.nn.Module]
    """By the names of what is served."""

    def tokens(self, name: str | None, prompt: str = PROMPT) -> tuple[int, ...]:
        ids = byte_tokenizer()(prompt).input_ids
        return tuple(expected(self.models[name], ids, GREEDY["max_tokens"]).tokens)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hybrid]:
    folder = tmp_path_factory.mktemp("hybrid")
    base = save_model(folder / "base", "qwen3.5", max_position_embeddings=1 << 17)
    model = tiny_model("qwen3.5", vocab_size=VOCAB)
    for seed, (name, targets) in enumerate(TARGETS.items()):
        save_adapter(model, folder / name, seed=seed, r=4 + seed, target_modules=targets)
    save(model, virtual_configs()["prompt"], folder / "prompt", seed=7)
    models: dict[str | None, torch.nn.Module] = {None: model}
    arguments = ("--block-size", str(BLOCK), "--max-running", str(MAX_RUNNING))
    server = RunningServer(folder / "server", base, *arguments)
    with server, server.client() as client:
        for name in (*TARGETS, "prompt"):
            client.adapters.upload(name, folder / name)
            models[name] = with_adapter(model, folder / name)
        yield Hybrid(server, base, models)


@pytest.fixture
def client(hybrid: Hybrid) -> Iterator[Client]:
    with hybrid.server.client() as client:
        yield client


def is_idle(server: RunningServer) -> bool:
    metrics = server.metrics()
    return not any(
        metrics[f"loramux_{gauge}"]
        for gauge in (
            "requests_running",
            "requests_waiting",
            "kv_blocks_used",
            "recurrent_states_used",
        )
    )


def test_each_adapter_answers_as_peft_does(hybrid: Hybrid, client: Client) -> None:
    wanted = {name: hybrid.tokens(name) for name in hybrid.models}
    assert len(set(wanted.values())) == len(wanted)

    def ask(name: str | None) -> tuple[int, ...]:
        return client.generate(PROMPT, adapter=name, **GREEDY).token_ids

    def read(name: str | None) -> tuple[int, ...]:
        chunks = client.stream(PROMPT, adapter=name, **GREEDY)
        return tuple(token for chunk in chunks for token in chunk.token_ids)

    with ThreadPoolExecutor(3 * len(wanted)) as pool:
        for way in (ask, read, ask):
            assert list(pool.map(way, wanted)) == list(wanted.values())
    assert client.adapters.get("prompt").virtual_tokens == 30


def test_completions_of_one_prompt_go_ways_of_their_own(hybrid: Hybrid, client: Client) -> None:
    done = client.generate(PROMPT, adapter="one", n=3, **GREEDY)
    assert {each.token_ids for each in done.completions} == {hybrid.tokens("one")}
    options: dict[str, Any] = {**GREEDY, "temperature": 1.0, "seed": 5}
    found = client.generate(PROMPT, adapter="one", n=3, **options)
    assert len({each.token_ids for each in found.completions}) == 3
    read: dict[int, list[int]] = {index: [] for index in range(3)}
    for chunk in client.stream(PROMPT, adapter="one", n=3, **options):
        read[chunk.index] += chunk.token_ids
    assert [tuple(each) for each in read.values()] == [e.token_ids for e in found.completions]
    # What was sampled is as likely as PEFT says, after what was sampled before it.
    for completion in found.completions:
        whole = [*TOKENS, *completion.token_ids]
        reported = client.generate(whole, adapter="one", prompt_logprobs=1, max_tokens=0)
        wanted = expected_logprobs(hybrid.models["one"], whole)
        check_prompt(reported.prompt_logprobs, whole, wanted, 1)


def test_who_begins_alike_goes_on_from_what_is_known(hybrid: Hybrid, client: Client) -> None:
    system = "You speak of animals, and of nothing else. "
    shared = (1 + len(system)) // BLOCK * BLOCK
    for name in NAMES:
        prompts = [system + each for each in ("Cats, then?", "A dog?", "Or both?", "A horse?")]
        asked = [client.generate(each, adapter=name, **GREEDY) for each in [*prompts, prompts[0]]]
        found = [each.usage.cached_tokens for each in asked]
        # Of the first nothing was known, and the second finds out where it parts from it.
        assert found == [0, 0, shared, shared, (len(system) + len("Cats, then?")) // BLOCK * BLOCK]
        wanted = [hybrid.tokens(name, prompt) for prompt in [*prompts, prompts[0]]]
        assert [each.token_ids for each in asked] == wanted


def test_texts_have_the_form_that_is_asked_for(client: Client) -> None:
    form = re.compile(r"[a-z]{2,5}-[0-9]{3}")
    options: dict[str, Any] = {"regex": form.pattern, "n": 4, "seed": 3}
    asked = [client.generate(PROMPT, adapter=each, **options) for each in NAMES]
    texts = [each.text for done in asked for each in done.completions]
    assert [text for text in texts if not form.fullmatch(text)] == []
    assert len(set(texts)) > 3


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_as_likely_as_peft_says(
    hybrid: Hybrid, client: Client, name: str | None
) -> None:
    wanted = expected_logprobs(hybrid.models[name], TOKENS)
    for _ in range(2):  # the second time all of it is in the prefix cache
        reported = client.generate(PROMPT, adapter=name, prompt_logprobs=3, max_tokens=0)
        check_prompt(reported.prompt_logprobs, TOKENS, wanted, 3)


def test_vectors_are_those_of_peft(hybrid: Hybrid, client: Client) -> None:
    texts = [PROMPT, "A naïve 🙂 abandons everything but its own good humour", "x"]
    for name in NAMES:
        states = [
            expected_states(hybrid.models[name], byte_tokenizer()(text).input_ids) for text in texts
        ]
        for pooling in ("last", "mean"):
            answer = client.embed(texts, adapter=name, pooling=pooling, normalize=True)
            wanted = torch.stack([vector_of(each, pooling) for each in states])
            torch.testing.assert_close(torch.tensor(answer.vectors), wanted, rtol=0, atol=1e-4)


def test_beams_are_those_of_transformers(hybrid: Hybrid, client: Client) -> None:
    for name in NAMES:
        model = hybrid.models[name]
        liked = searched(model, TOKENS, [2])
        ends = sorted({2, liked[0].tokens[4], liked[1].tokens[2]})
        done = client.generate(
            TOKENS, adapter=name, num_beams=4, n=3, max_tokens=10, stop_token_ids=ends
        )
        check_beams(done, searched(model, TOKENS, ends), ends)


def test_keys_and_values_of_an_adapter_are_refused(
    hybrid: Hybrid, client: Client, tmp_path: Path
) -> None:
    model = tiny_model("qwen3.5", vocab_size=VOCAB)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    folder = save(model, config, tmp_path / "prefix", seed=0)
    with pytest.raises(InvalidArgumentError, match="recurrent layers, which keep none") as caught:
        client.adapters.upload("prefix", folder)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
    assert client.generate(PROMPT, **GREEDY).token_ids == hybrid.tokens(None)


def runs(server: RunningServer, stream: Iterator[Chunk]) -> bool:
    """Read on in `stream`, which is paused where nobody does, and return whether all of it runs."""
    next(stream)
    return server.metrics()["loramux_requests_running"] == MAX_RUNNING


def test_who_gives_up_leaves_nothing_behind(hybrid: Hybrid, client: Client) -> None:
    # More of them in turn than there are states.
    for name in (*NAMES, *NAMES):
        stream = client.stream(PROMPT, adapter=name, n=MAX_RUNNING, **ENDLESS)
        assert eventually(lambda stream=stream: runs(hybrid.server, stream))  # type: ignore[misc]
        stream.close()  # type: ignore[attr-defined]
        assert eventually(lambda: is_idle(hybrid.server))
    with ThreadPoolExecutor(2 * MAX_RUNNING) as pool:
        answers = pool.map(
            lambda _: client.generate(PROMPT, adapter="two", **GREEDY).token_ids,
            range(2 * MAX_RUNNING),
        )
        assert set(answers) == {hybrid.tokens("two")}


def test_no_more_run_than_there_are_states_for(hybrid: Hybrid, tmp_path: Path) -> None:
    # Half of it holds what recurrent layers know of five.
    arguments = ("--kv-memory", str(12 * STATE_BYTES), "--max-running", "16", "--max-waiting", "2")
    with RunningServer(tmp_path, hybrid.base, *arguments) as server, server.client() as client:
        assert client.info().max_running_requests == 5
        stream = client.stream(PROMPT, n=7, max_tokens=500, ignore_eos=True)
        assert next(stream)
        assert eventually(lambda: server.metrics()["loramux_recurrent_states_used"] == 5)
        with pytest.raises(ResourceExhaustedError, match="2 requests may wait") as caught:
            client.generate(PROMPT, **GREEDY)
        assert caught.value.reason == "QUEUE_FULL"
        stream.close()  # type: ignore[attr-defined]
        assert eventually(lambda: is_idle(server))


def test_what_it_does_not_do_is_said_at_the_start(hybrid: Hybrid, tmp_path: Path) -> None:
    asked = {
        ("--tensor-parallel", "2", "--device", "cpu"):
            "tensor_parallel is 2, but the recurrent layers of Qwen3_5ForCausalLM cannot be sh",
        ("--speculative-tokens", "4"):
            "speculative_tokens must be 0, got 4: Qwen3_5ForCausalLM has recurrent layers",
    }  # fmt: skip
    servers = [
        RunningServer(tmp_path / str(number), hybrid.base, *arguments).launch()
        for number, arguments in enumerate(asked)
    ]
    for server, message in zip(servers, asked.values(), strict=True):
        assert server.wait() == 78
        last = server.log.read_text().splitlines()[-1]
        assert last.startswith("loramux: ")
        assert re.search(message, last)
        assert not server.was_ready
