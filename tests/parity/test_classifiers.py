"""Adapters that classify, in one batch with those that write: each row as PEFT alone."""

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from loramux_adapters.base import read_base
from loramux_adapters.head import Task
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.table import folded
from tests.parity.test_peft import Case, check, target_modules
from tests.parity.test_saved import norms
from tests.support.adapters import expected, pack_source, save_adapter, save_tuned, with_adapter
from tests.support.classifiers import classifier, expected_logits, tasks_of
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

TOLERANCE = 1e-4
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gemma2", "phi", "gpt-neox"]
EVERY_METHOD = frozenset({"llama", "gpt2"})


@dataclass(frozen=True)
class Text:
    """A text to classify, and what PEFT makes of it."""

    prompt: list[int]
    source: AdapterSource
    logits: torch.Tensor


def configs(task: Task, names: list[str], norms: list[str]) -> dict[str, PeftConfig]:
    """Return a config of each method that a head can go with, for layers and norms of a model."""
    some = names[: len(names) // 2]
    lora = {"task_type": str(task), "r": 6, "lora_alpha": 9}
    return {
        "lora": LoraConfig(target_modules=names, **lora),
        "rslora": LoraConfig(target_modules=some, use_rslora=True, **lora),
        "dora": LoraConfig(target_modules=some, use_dora=True, **lora),
        "biases": LoraConfig(target_modules=some, bias="all", **lora),
        "norms": LoraConfig(target_modules=some, modules_to_save=[*norms], **lora),
        "ia3": IA3Config(task_type=str(task), target_modules=some, feedforward_modules=[]),
        "ln tuning": LNTuningConfig(task_type=str(task), target_modules=norms),
    }


def texts(model: PreTrainedModel, folder: Path, served: ServedBase, *, every: bool) -> list[Text]:
    """Return two texts for each task, and for each method or LoRA alone."""
    rng = random.Random(1)
    found = []
    for task in tasks_of(model):
        base = classifier(model, task, num_labels=3 if task is Task.SEQUENCE else 5)
        names = target_modules(model)[0]
        methods = configs(task, names, norms(model))
        if not isinstance(model, GPT2LMHeadModel):  # PEFT folds none into its layers
            methods |= folded.configs(names, str(task))
        for seed, (name, config) in enumerate(methods.items()):
            if not every and name != "lora":
                continue
            saved = folder / f"{task} {name}"
            wrapped = save_tuned(base, config, saved, seed=seed)
            source = pack_source(saved, folder / f"{task}-{seed}.pkg", base=served)
            for length in (rng.choice([1, 4, 9]), rng.randint(10, 30)):
                prompt = [rng.randrange(3, VOCAB) for _ in range(length)]
                logits = expected_logits(wrapped, prompt)
                found.append(Text(prompt, source, logits))
    return found


def cases(model: PreTrainedModel, folder: Path) -> list[Case]:
    """Return prompts to continue, with adapters and without."""
    rng = random.Random(3)
    names = target_modules(model)[0]
    found = []
    for seed in range(6):
        wrapped: nn.Module = model
        source = None
        if seed % 3:
            saved = save_adapter(
                model,
                folder / f"{seed}",
                seed=seed,
                r=4 * seed,
                target_modules=names[seed % 2 :: 2],
            )
            wrapped, source = with_adapter(model, saved), pack_source(saved, folder / f"{seed}.pkg")
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 20))]
        found.append(Case(prompt, source, expected(wrapped, prompt, rng.randint(8, 16))))
    return found


def check_logits(harness: Harness, request_id: int, text: Text) -> None:
    assert not harness.tokens[request_id]
    found = harness.logits(request_id, text.logits.shape[-1]).reshape(text.logits.shape)
    torch.testing.assert_close(found, text.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_and_prompts_in_one_batch_equal_peft_alone(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    prompts = cases(model, tmp_path)
    # Prompts run in chunks, and adapters come and go.
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=256, num_blocks=40, max_batch_tokens=24,
        max_running=8, host_adapter_memory=1 << 20,
    )  # fmt: skip
    model.save_pretrained(str(tmp_path / "base"))  # some methods are folded with its weights
    served = replace(
        ServedBase.of(harness.info, max_host_bytes=1 << 30), folder=read_base(tmp_path / "base")
    )
    classified = texts(model, tmp_path, served, every=architecture in EVERY_METHOD)
    asked: dict[int, Text] = {}
    order: list[Text | Case] = [*prompts, *classified]
    random.Random(2).shuffle(order)
    written: dict[int, Case] = {}
    for index, each in enumerate(order):
        if isinstance(each, Text):
            asked[harness.submit(each.prompt, each.source)] = each
        else:
            count = len(each.expected.tokens)
            request_id = harness.submit(
                each.prompt, each.source, max_tokens=count, num_logprobs=VOCAB
            )
            written[request_id] = each
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, case in written.items():
        check(harness, request_id, case)
    for request_id, text in asked.items():
        check_logits(harness, request_id, text)
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 2
