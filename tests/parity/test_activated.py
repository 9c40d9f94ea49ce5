"""Activated LoRA in one batch with the rest, each row equal to PEFT with that adapter alone."""

import copy
import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_methods import lora, save
from tests.parity.test_peft import Case, check, target_modules
from tests.support.adapters import Expected, expected, pack_source, with_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

INVOCATION = [11, 12, 11]


@torch.inference_mode()
def activated(model: torch.nn.Module, prompt: list[int], num_tokens: int) -> Expected:
    """Return what PEFT's `generate` makes of `prompt`: it looks for the tokens there alone."""
    places = [i for i in range(len(prompt)) if prompt[i : i + len(INVOCATION)] == INVOCATION]
    tokens: list[int] = []
    rows = []
    for _ in range(num_tokens):
        whole = [*prompt, *tokens]
        logits = model(
            input_ids=torch.tensor([whole]), use_cache=False,
            alora_offsets=[len(whole) - places[-1] if places else None],
        ).logits[0, -1]  # fmt: skip
        rows.append(torch.log_softmax(logits.float(), -1))
        tokens.append(int(logits.argmax()))
    return Expected(tokens, torch.stack(rows))


def prompts(rng: random.Random) -> list[list[int]]:
    """Return prompts with INVOCATION at various places, many of which begin alike."""
    talk = [rng.randrange(13, VOCAB) for _ in range(20)]
    return [
        [*talk[:9], *INVOCATION],
        [*talk[:9], *INVOCATION, *talk[:5]],
        [*talk[:14], *INVOCATION, *talk[:3], *INVOCATION, 12],
        [*talk, *INVOCATION[:2], *INVOCATION, 12, 11],  # the second overlaps the third
        [*INVOCATION, *talk],
        INVOCATION,
        talk,
        [*talk, *INVOCATION[:2]],
    ]


def cases(model: PreTrainedModel, folder: Path) -> list[Case]:
    rng = random.Random(0)
    names = target_modules(model)[0]
    configs = {
        "activated": lora(target_modules=names, alora_invocation_tokens=INVOCATION),
        "with a bias": lora(
            target_modules=names[:2], alora_invocation_tokens=INVOCATION, lora_bias=True
        ),
        "plain": lora(target_modules=names),
    }
    variants: list[tuple[torch.nn.Module, AdapterSource | None]] = [(model, None)]
    for seed, (name, config) in enumerate(configs.items()):
        saved = save(model, config, folder / name, seed)
        packed = pack_source(saved, folder / f"{seed}.pkg")
        assert packed.invocation == tuple(INVOCATION if name != "plain" else ())
        variants.append((with_adapter(model, saved), packed))
    found = []
    for prompt in prompts(rng):
        for wrapped, source in variants:
            make = activated if source and source.invocation else expected
            found.append(Case(prompt, source, make(wrapped, prompt, rng.randint(2, 6))))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3"])
def test_rows_are_of_the_base_before_and_of_the_adapter_after(
    architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    requests = cases(model, tmp_path)
    # Prompts run in chunks, and blocks run out.
    harness = Harness(
        copy.deepcopy(model), kernels="torch" if architecture == "qwen3" else "cpu", rows=128,
        num_blocks=30, max_batch_tokens=24, max_running=8,
    )  # fmt: skip
    for index, case in enumerate(requests):
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case)
    stats = harness.reports[-1].stats
    assert stats.preemptions > 0
    assert stats.shared_tokens > 0


def test_what_is_generated_activates_nothing(tmp_path: Path) -> None:
    model = tiny_model("llama")
    prompt = [5, 6, 7]
    base = expected(model, prompt, 6)
    names = target_modules(model)[0]
    config = lora(target_modules=names, alora_invocation_tokens=base.tokens[1:2])
    assert base.tokens[1] not in prompt
    saved = save(model, config, tmp_path / "a", 0)
    wrapped = with_adapter(model, saved)
    generated = wrapped.generate(  # type: ignore[operator]
        input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=6, min_new_tokens=6
    )
    assert generated[0, 3:].tolist() == base.tokens
    harness = Harness(copy.deepcopy(model), rows=64, num_blocks=50)
    request = harness.submit(prompt, pack_source(saved, tmp_path / "a.pkg"), max_tokens=6)
    harness.run()
    assert harness.output(request) == base.tokens
