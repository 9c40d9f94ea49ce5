"""Log-probabilities of prompts, in one batch with others: as PEFT with that adapter alone."""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from loramux_server.engine import model_runner
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Finish
from tests.parity.test_activated import INVOCATION
from tests.parity.test_methods import configs as methods
from tests.parity.test_methods import lora, save
from tests.parity.test_peft import target_modules
from tests.parity.test_saved import configs as saved_configs
from tests.parity.test_saved import resized_configs
from tests.parity.test_saved import save as save_resized
from tests.support.adapters import pack_source, quiet_peft, with_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model
from tests.support.scored import check_prompt_logprobs, expected_logprobs

TOLERANCE = 2e-4
METHODS = ("lora", "ia3", "prompt", "prefix")
SAVED = ("all of these", "lora of output", "tokens of output")


@dataclass(frozen=True)
class Scored:
    """A prompt, and what PEFT says of its tokens."""

    prompt: list[int]
    source: AdapterSource | None
    logprobs: torch.Tensor


def scored(architecture: str, folder: Path) -> list[Scored]:
    """Return prompts of the base, and of adapters that change all that logits are made of."""
    model = tiny_model(architecture)
    rng = random.Random(1)
    kinds: list[tuple[torch.nn.Module, AdapterSource | None, int]] = [(model, None, VOCAB)]
    asked = {name: methods(model)[name] for name in METHODS}
    asked |= {name: saved_configs(model)[name] for name in SAVED}
    for seed, (name, config) in enumerate(asked.items()):
        saved = save(model, config, folder / name, seed)
        kinds.append((with_adapter(model, saved), pack_source(saved, folder / f"{seed}"), VOCAB))
    for name in ("rows", "shrunk"):
        size, config = resized_configs(model)[name]
        resized: PreTrainedModel = copy.deepcopy(model)
        with quiet_peft():
            resized.resize_token_embeddings(size, mean_resizing=False)
        saved = save_resized(resized, config, folder / name, 3, save_embedding_layers=True)
        package = pack_source(saved, folder / f"{name}.package", size)
        kinds.append((with_adapter(resized, saved), package, size))
    found = []
    for wrapped, source, size in kinds:
        for length in (2, 30):
            prompt = [size - 1, *(rng.randrange(3, size) for _ in range(length - 1))]
            found.append(Scored(prompt, source, expected_logprobs(wrapped, prompt)))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_prompts_in_one_batch_equal_peft_alone(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scored(architecture, tmp_path)
    monkeypatch.setattr(model_runner, "PIECE_BYTES", 5 * 4 * VOCAB)  # five tokens
    # Prompts run in chunks, blocks run out, and others write.
    harness = Harness(
        copy.deepcopy(tiny_model(architecture)), kernels="cpu", rows=2048, num_blocks=40,
        max_batch_tokens=24, max_running=6,
    )  # fmt: skip
    writing = [harness.submit([5, 6, 7, number], max_tokens=40) for number in range(4)]
    counts = {}
    for number, each in enumerate(asked):
        # All that there are, some, or none beside the token itself, and then some text or none.
        size = each.logprobs.shape[1]
        counts[number] = (size, 3, 0)[number % 3]
        harness.submit(
            each.prompt, each.source, num_prompt_logprobs=counts[number], max_tokens=number % 2 * 3
        )
        if number % 3 == 2:
            harness.step()
    harness.run()
    assert not harness.failures
    assert harness.reports[-1].stats.preemptions > 0
    assert all(len(harness.output(request_id)) == 40 for request_id in writing)
    for number, each in enumerate(asked):
        request_id = len(writing) + number
        reported = harness.prompt_logprobs(request_id)
        assert len(reported) == (len(each.prompt) - 1) * (2 + 2 * counts[number])
        check_prompt_logprobs(reported, each.prompt, each.logprobs, TOLERANCE)
        assert len(harness.output(request_id)) == number % 2 * 3
        finish = harness.prompts[request_id].finish
        assert finish == (None if number % 2 else Finish.LENGTH)


def test_an_adapter_that_begins_in_the_prompt_counts_from_there(tmp_path: Path) -> None:
    model = tiny_model("llama")
    config = lora(target_modules=target_modules(model)[0], alora_invocation_tokens=INVOCATION)
    saved = save(model, config, tmp_path / "a", 1)
    source = pack_source(saved, tmp_path / "a.package")
    wrapped = with_adapter(model, saved)
    prompt = [20, 21, 22, 23, 24, *INVOCATION, 30, 31, 32, 33]
    wanted = expected_logprobs(wrapped, prompt, alora_offsets=[len(prompt) - 5])
    plain = expected_logprobs(model, prompt)
    torch.testing.assert_close(wanted[:5], plain[:5], rtol=0, atol=1e-5)
    assert (wanted[5:] - plain[5:]).abs().max() > 0.1
    harness = Harness(copy.deepcopy(model), rows=64, num_blocks=40, max_batch_tokens=7)
    request_id = harness.submit(prompt, source, num_prompt_logprobs=2, max_tokens=0)
    harness.run()
    check_prompt_logprobs(harness.prompt_logprobs(request_id), prompt, wanted, TOLERANCE)
