"""Adapters of virtual tokens over a real socket: pushed as PEFT saved them, and equal to PEFT."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig

from loramux import Client
from loramux.errors import InvalidArgumentError
from tests.parity.test_methods import save, virtual_configs
from tests.support.adapters import expected, with_adapter
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.server import RunningServer

CONTEXT = 64
PROMPT = "quick brown fox"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


def prompt_config(count: int) -> PeftConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)


def refused(client: Client, folder: Path) -> tuple[str, str]:
    with pytest.raises(InvalidArgumentError) as caught:
        client.adapters.upload("refused", folder)
    return caught.value.reason or "", str(caught.value)


def test_each_method_answers_as_peft_does_before_and_after_a_restart(
    tiny_base: Path, tmp_path: Path
) -> None:
    model = tiny_model("llama", vocab_size=259)
    tokens = byte_tokenizer()(PROMPT).input_ids
    names = {f"m{number}": config for number, config in enumerate(virtual_configs().values())}
    wanted: dict[str | None, list[int]] = {None: expected(model, tokens, 8).tokens}
    for seed, (name, config) in enumerate(names.items()):
        saved = save(model, config, tmp_path / name, seed)
        wanted[name] = expected(with_adapter(model, saved), tokens, 8).tokens
    assert len({tuple(each) for each in wanted.values()}) == len(wanted)

    def ask(client: Client, name: str | None) -> list[int]:
        done = client.generate(PROMPT, adapter=name, **GREEDY)
        assert done.usage.prompt_tokens == len(tokens)  # the caller's own
        return list(done.token_ids)

    for _ in range(2):
        with RunningServer(tmp_path / "server", tiny_base) as server, server.client() as client:
            for name in names:
                client.adapters.upload(name, tmp_path / name)
            with ThreadPoolExecutor(2 * len(wanted)) as pool:
                answers = list(pool.map(lambda name: ask(client, name), [*wanted, *wanted]))
            assert answers == 2 * list(wanted.values())
            adapter = client.adapters.get("m0")
            assert (adapter.method, adapter.virtual_tokens) == ("prompt_tuning", 30)


def test_the_limits_of_the_context_count_virtual_tokens(tiny_base: Path, tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=259)
    for count in (CONTEXT - 2, CONTEXT - 1):
        save(model, prompt_config(count), tmp_path / str(count), seed=count)
    narrow = tiny_model("llama", vocab_size=259, num_key_value_heads=1)
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    save(narrow, prefix, tmp_path / "narrow", seed=0)
    with (
        RunningServer(tmp_path / "server", tiny_base, "--max-context", str(CONTEXT)) as server,
        server.client() as client,
    ):
        client.adapters.upload("long", tmp_path / str(CONTEXT - 2))
        done = client.generate([5], adapter="long", temperature=0, ignore_eos=True)
        assert len(done.token_ids) == 1
        assert done.usage.prompt_tokens == 1
        for prompt, max_tokens in (([5, 6], 1), ([5], 2)):
            with pytest.raises(InvalidArgumentError, match="62 virtual tokens") as caught:
                client.generate(prompt, adapter="long", max_tokens=max_tokens)
            assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
        reason, message = refused(client, tmp_path / str(CONTEXT - 1))
        assert reason == "ADAPTER_TOO_LARGE"
        assert "63 virtual tokens; the context of 64" in message
        reason, message = refused(client, tmp_path / "narrow")
        assert reason == "ADAPTER_BASE_MISMATCH"
        assert "2 layers of 1 heads of width 8" in message
        assert client.generate([5, 6], **GREEDY).token_ids
