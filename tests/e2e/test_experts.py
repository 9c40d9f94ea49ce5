"""Adapters of experts over the socket: what PEFT saved is served unchanged, beside others."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from loramux import Client
from loramux.errors import FailedPreconditionError, InvalidArgumentError, LoramuxError
from tests.parity.test_experts import configs, lora, save_old
from tests.parity.test_methods import save
from tests.support.adapters import expected, with_adapter
from tests.support.models import byte_tokenizer, save_model, tiny_model
from tests.support.server import RunningServer

PROMPT = "A stitch in time"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("experts")
    base = save_model(folder / "base", "qwen3-moe")
    with RunningServer(folder, base) as server, server.client() as client:
        yield client


def test_what_peft_saved_is_served_beside_others(client: Client, tmp_path: Path) -> None:
    model = tiny_model("qwen3-moe", vocab_size=259)
    prompt = byte_tokenizer()(PROMPT).input_ids
    folders = {
        f"a{seed}": save(model, config, tmp_path / f"a{seed}", seed)
        for seed, config in enumerate(configs().values())
    }
    parts = ["gate_proj", "up_proj", "down_proj"]
    folders["old"] = save_old("qwen3-moe", tmp_path / "old", parts, torch.bfloat16)
    wanted = {
        name: expected(with_adapter(model, folder), prompt, 6).tokens
        for name, folder in folders.items()
    }

    def ask(name: str) -> list[int]:
        answer = client.generate(PROMPT, adapter=name, temperature=0, max_tokens=6, ignore_eos=True)
        return list(answer.token_ids)

    for name, folder in folders.items():
        found = client.adapters.upload(name, folder)
        assert found.rank in (1, 3, 5)
    with ThreadPoolExecutor(len(folders)) as pool:
        assert dict(zip(folders, pool.map(ask, folders), strict=True)) == wanted
    assert len({tuple(tokens) for tokens in wanted.values()}) > 3
    info = client.adapters.get("a0")
    assert info.target_modules == ("down_proj", "gate_up_proj")
    with pytest.raises(LoramuxError, match="low-rank updates") as caught:
        client.generate(PROMPT, adapter="a0", scale=0.5)
    assert caught.value.reason == "ADAPTER_NOT_MIXABLE"


def test_experts_that_the_base_lacks_are_refused(client: Client, tmp_path: Path) -> None:
    other = tiny_model("qwen3-moe", vocab_size=259, num_experts=6)
    config = lora(target_parameters=["gate_up_proj"])
    with pytest.raises((InvalidArgumentError, FailedPreconditionError)) as caught:
        client.adapters.upload("more", save(other, config, tmp_path / "more", 1))
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
    assert "changes 6 experts, but the base model has 4" in str(caught.value)
