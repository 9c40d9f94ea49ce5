"""Heads beside virtual tokens, in one batch: each text has the logits that PEFT has for it alone.

PEFT returns logits of virtual tokens, too, where it puts embeddings before a text: they come first,
and are left out.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from transformers import PreTrainedModel

from loramux_adapters import PackageError
from loramux_adapters.head import Task
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.model_info import ModelInfo
from tests.support.adapters import pack_source, save_tuned
from tests.support.classifiers import classifier
from tests.support.encoder_heads import VOCAB, for_task, save_encoder
from tests.support.engine import Harness
from tests.support.models import tiny_model

COUNT = 3
"""Virtual tokens of each adapter."""


@dataclass(frozen=True)
class Text:
    """A text, and what PEFT makes of it."""

    tokens: list[int]
    second_from: int
    source: AdapterSource
    logits: torch.Tensor


def configs(task: Task, base: BaseModel | None) -> Iterator[PeftConfig]:
    """Yield configs for a task, on an encoder or on Llama."""
    common = {"task_type": str(task), "num_virtual_tokens": COUNT}
    if base is None:
        # Llama's own sizes PEFT finds out.
        yield PromptTuningConfig(**common)
        yield PrefixTuningConfig(**common)
        yield PromptTuningConfig(**common, modules_to_save=["post_attention_layernorm"])
        return
    width = base.module.get_input_embeddings().weight.shape[1]
    sizes = {"token_dim": width, "num_layers": 2, "num_attention_heads": 2}
    lost = ["pooler"] if "Deberta" in base.architecture and task is Task.SEQUENCE else None
    yield PromptTuningConfig(**common, **sizes, modules_to_save=lost)
    if base.prefix_shapes:
        norms = ["output.LayerNorm"]
        yield PrefixTuningConfig(**common, **sizes)
        yield PromptEncoderConfig(**common, **sizes, encoder_hidden_size=8)
        yield PromptTuningConfig(**common, **sizes, modules_to_save=norms)


@torch.inference_mode()
def expected(model: PeftModel, task: Task, tokens: list[int], types: list[int]) -> torch.Tensor:
    """Return what PEFT makes of a text: [1, labels], or [tokens, labels]."""
    reported = {"token_type_ids": torch.tensor([types])} if any(types) else {}
    if "MULTITASK" in str(model.peft_type):
        reported["task_ids"] = torch.tensor([0])
    output = model(input_ids=torch.tensor([tokens]), **reported)
    if task is Task.SPANS:
        both = torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1)
        return both[-len(tokens) :]
    logits: torch.Tensor = output.logits
    return logits if task is Task.SEQUENCE else logits[0, -len(tokens) :]


def texts(
    model: PreTrainedModel, task: Task, base: BaseModel | None, folder: Path, info: ModelInfo
) -> Iterator[Text]:
    """Yield texts for adapters for a task on `model`, whose class is for that."""
    rng = random.Random(3)
    served = ServedBase.of(info, max_host_bytes=1 << 30)
    for seed, config in enumerate(configs(task, base)):
        adapter, package = folder / f"{task}-{seed}", folder / f"{task}-{seed}.safetensors"
        tuned = save_tuned(model, config, adapter, seed=seed)
        source = pack_source(adapter, package)
        with package.open("rb") as file:
            assert check_package(file, package.stat().st_size, served).task == task
        for length in (1, 4, 11):
            tokens = [rng.randrange(3, VOCAB) for _ in range(length)]
            # PEFT does not tell models for questions of types.
            has_types = bool(base and base.takes_token_types and task is not Task.SPANS)
            second = length // 2 if has_types else 0
            types = [int(bool(second) and place >= second) for place in range(length)]
            yield Text(tokens, second, source, expected(tuned, task, tokens, types))


def check(harness: Harness, asked: list[Text]) -> None:
    """Read all of them at once, and demand that each has PEFT's logits."""
    random.Random(5).shuffle(asked)
    wanted = {
        harness.submit(text.tokens, text.source, second_from=text.second_from): text.logits
        for text in asked
    }
    harness.run()
    assert not harness.failures
    for request_id, logits in wanted.items():
        found = harness.logits(request_id, logits.shape[-1])
        assert found.shape == logits.shape
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-4)
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 1


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert-mean", "deberta"])
def test_an_encoders_heads_are_behind_virtual_tokens_as_with_peft(
    name: str, tmp_path: Path
) -> None:
    folder = save_encoder(name, tmp_path / "base")
    base = load_base_model(str(folder))
    harness = Harness(base, kernels="cpu", rows=256, max_running=8)
    tasks = [task for task in Task if "modern" not in name or task is not Task.SPANS]
    asked = [
        text
        for task in tasks
        for text in texts(for_task(folder, task), task, base, tmp_path, harness.info)
    ]
    check(harness, asked)


def test_llamas_heads_are_behind_virtual_tokens_as_with_peft(tmp_path: Path) -> None:
    model = tiny_model("llama")
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=256, num_blocks=60, max_batch_tokens=8,
        max_running=6,
    )  # fmt: skip
    asked = [
        text
        for task in Task
        for text in texts(classifier(model, task, 4), task, None, tmp_path, harness.info)
    ]
    check(harness, asked)


def refusal(package: Path, info: ModelInfo) -> str:
    """Return why a package is refused on a base model."""
    served = ServedBase.of(info, max_host_bytes=1 << 30)
    with package.open("rb") as file, pytest.raises(PackageError) as caught:
        check_package(file, package.stat().st_size, served)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distilbert", "neither the base model nor PEFT supports them here"),
        ("big-bird", "PEFT fails with BigBirdForSequenceClassification: IndexError"),
    ],
)
def test_keys_and_values_that_peft_does_not_serve_are_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    folder, adapter, package = (tmp_path / part for part in ("base", "adapter", "package"))
    save_encoder(name, folder)
    harness = Harness(load_base_model(str(folder)), kernels="cpu", rows=64)
    config = PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=16, num_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    save_tuned(for_task(folder, Task.SEQUENCE), config, adapter, seed=1)
    pack_source(adapter, package)
    assert message in refusal(package, harness.info)


def test_embeddings_of_tokens_are_refused_beside_those_of_virtual_ones(tmp_path: Path) -> None:
    model, package = tiny_model("llama"), tmp_path / "package"
    harness = Harness(copy.deepcopy(model), kernels="cpu", rows=64)
    config = PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, modules_to_save=["embed_tokens"]
    )
    save_tuned(classifier(model, Task.SEQUENCE, 2), config, tmp_path / "adapter", seed=1)
    pack_source(tmp_path / "adapter", package)
    reported = "PEFT looks the latter up in the untrained embeddings"
    assert reported in refusal(package, harness.info)
