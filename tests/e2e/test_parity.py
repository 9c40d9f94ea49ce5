"""What comes over the socket is what PEFT computes with that adapter alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramux import Generation
from tests.conftest import ADAPTERS
from tests.support.adapters import Expected, expected, with_adapter
from tests.support.demo import DEMO
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.server import RunningServer

NUM_TOKENS = 10
PROMPTS = ("The ", "abandon ->", "a good day ->", "ship ->")
Case: TypeAlias = tuple[str, str | None, Expected]
"""Prompt, adapter and PEFT's answer."""


@pytest.fixture(scope="module")
def references(tiny_adapters: Path) -> list[Case]:
    """A case for every adapter and the base, prompts of many lengths."""
    model = tiny_model("llama", vocab_size=259)
    tokenizer = byte_tokenizer()
    found = []
    for adapter in [None, *ADAPTERS]:
        wrapped = with_adapter(model, tiny_adapters / adapter if adapter else None)
        for prompt in ("a", "The quick brown fox", "naïve — 日本 " * 5):
            tokens = tokenizer(prompt).input_ids
            found.append((prompt, adapter, expected(wrapped, tokens, NUM_TOKENS)))
    return found


def test_a_mixed_batch_over_the_socket_equals_peft_alone(
    tiny_server: RunningServer, references: list[Case]
) -> None:
    check(tiny_server, references, NUM_TOKENS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="these kernels serve there without asking")
def test_so_do_trained_adapters_with_the_kernels_of_a_gpu(tmp_path: Path) -> None:
    base, adapters = DEMO / "base", DEMO / "adapters"
    arguments = ("--adapters", str(adapters), "--kernels", "triton", "--dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    found: list[Case] = []
    for prompt, adapter in zip(PROMPTS, [None, *sorted(adapters.iterdir())], strict=False):
        tokens = tokenizer(prompt).input_ids
        wanted = expected(with_adapter(model, adapter), tokens, num_tokens=3)
        found.append((prompt, adapter.name if adapter else None, wanted))
    assert len(found) == 4
    with RunningServer(tmp_path, base, *arguments) as server:
        check(server, found, num_tokens=3)


def check(server: RunningServer, references: list[Case], num_tokens: int) -> None:
    """Assert that `server` answers all of `references` at once as PEFT does each."""
    with server.client() as client, ThreadPoolExecutor(len(references)) as pool:

        def ask(case: Case) -> Generation:
            prompt, adapter, _ = case
            return client.generate(
                prompt, adapter=adapter, temperature=0, max_tokens=num_tokens, ignore_eos=True,
                logprobs=20,
            )  # fmt: skip

        answers = list(pool.map(ask, references))
    for (_, _, wanted), answer in zip(references, answers, strict=True):
        assert list(answer.token_ids) == wanted.tokens[:num_tokens]
        for position, logprob_V in zip(answer.logprobs, wanted.logprobs[:num_tokens], strict=True):
            ours = torch.tensor([top.logprob for top in position.top])
            torch.testing.assert_close(ours, logprob_V.topk(20).values, rtol=0, atol=1e-4)
