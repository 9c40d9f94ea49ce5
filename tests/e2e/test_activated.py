"""Activated LoRA over a real socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loramux import Client, SamplingOptions
from loramux.errors import InvalidArgumentError
from tests.parity.test_methods import lora, save
from tests.support.adapters import with_adapter
from tests.support.models import tiny_model
from tests.support.polling import eventually
from tests.support.server import RunningServer

INVOCATION = [11, 12]
TALK = [20 + i for i in range(40)]
GREEDY = SamplingOptions(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that PEFT saved."""
    config = lora(
        target_modules=["q_proj", "v_proj", "up_proj"], alora_invocation_tokens=INVOCATION
    )
    folder = tmp_path_factory.mktemp("activated")
    return save(tiny_model("llama", vocab_size=259), config, folder / "saved", 3)


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer, saved: Path) -> Iterator[Client]:
    with tiny_server.client() as client:
        adapter = client.adapters.upload("activated", saved)
        assert adapter.invocation_token_ids == tuple(INVOCATION)
        assert client.adapters.get("small").invocation_token_ids == ()
        yield client
        client.adapters.delete("activated")


def reused(server: RunningServer, before: float = 0.0) -> float:
    """Return how many tokens were found in the prefix cache beside those `before`."""
    assert eventually(lambda: not server.metrics()["loramux_requests_running"])
    return server.metrics()["loramux_prefix_cache_hit_tokens_total"] - before


def test_it_equals_generate_of_peft_and_shares_what_the_base_has_of_the_prompt(
    tiny_server: RunningServer, client: Client, saved: Path
) -> None:
    peft = with_adapter(tiny_model("llama", vocab_size=259), saved)
    before = reused(tiny_server)
    base = client.generate(TALK, **GREEDY)
    assert reused(tiny_server, before) == 0
    for end, num_shared in (([*INVOCATION, 30], 32), ([*INVOCATION, 30], 32), ([], 32)):
        prompt = [*TALK, *end]
        wanted = peft.generate(  # type: ignore[operator]
            input_ids=torch.tensor([prompt]), do_sample=False, min_new_tokens=8, max_new_tokens=8
        )[0, len(prompt) :].tolist()
        before = reused(tiny_server)
        answer = client.generate(prompt, adapter="activated", **GREEDY)
        assert list(answer.token_ids) == wanted
        assert answer.adapter is not None
        assert answer.adapter.name == "activated"
        assert reused(tiny_server, before) == num_shared
    assert list(base.token_ids) == wanted  # without its tokens it does nothing


def test_the_base_shares_what_the_adapter_had_of_it(
    tiny_server: RunningServer, client: Client
) -> None:
    talk = TALK[::-1]
    client.generate([*talk, *INVOCATION], adapter="activated", **GREEDY)
    before = reused(tiny_server)
    client.generate(talk, **GREEDY)
    assert reused(tiny_server, before) == 32
    before = reused(tiny_server)
    client.generate([*talk, *INVOCATION], adapter="activated", scale=0.5, **GREEDY)
    assert reused(tiny_server, before) == 32


def test_tokens_that_the_base_lacks_are_refused(client: Client, tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=259)
    config = lora(target_modules=["q_proj"], alora_invocation_tokens=[259])
    saved = save(model, config, tmp_path / "saved", 3)
    with pytest.raises(InvalidArgumentError, match="token 259") as caught:
        client.adapters.upload("lacking", saved)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
