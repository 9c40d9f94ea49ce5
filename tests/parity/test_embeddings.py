"""Texts that are embedded, in one batch with others: the hidden states of each as PEFT's alone."""

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_adapters.embedding import Pooling
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_peft import target_modules
from tests.support.adapters import pack_source, source_of
from tests.support.embedders import bare, expected_states, save_embedder, vector_of
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

TOLERANCE = 1e-4
ARCHITECTURES = ["llama", "qwen3", "gpt2", "gemma2", "phi", "gpt-neox"]


@dataclass(frozen=True)
class Text:
    """A text to embed, and what PEFT makes of it."""

    prompt: list[int]
    source: AdapterSource | None
    pooling: Pooling
    vector: torch.Tensor


def texts(architecture: str, folder: Path) -> list[Text]:
    """Return texts for adapters of the bare model, of the causal one, and for none."""
    base = tiny_model(architecture)
    names = target_modules(base)[0]
    models: dict[str, tuple[torch.nn.Module, AdapterSource | None]] = {"": (base, None)}
    kinds = {"FEATURE_EXTRACTION": bare(base), "CAUSAL_LM": base}
    for seed, (task, model) in enumerate(kinds.items()):
        wrapped = save_embedder(
            model, folder / task, seed=seed, task_type=task, r=5, lora_alpha=9,
            target_modules=[name.rpartition(".")[2] for name in names],
        )  # fmt: skip
        models[task] = wrapped, pack_source(folder / task, folder / f"{task}.package")
    rng = random.Random(2)
    found = []
    for wrapped, source in models.values():
        for length in (1, 9, 30, 30):
            prompt = [rng.randrange(3, VOCAB) for _ in range(length)]
            states = expected_states(wrapped, prompt)
            for pooling in (Pooling.LAST, Pooling.MEAN):
                vector = vector_of(states, pooling, normalize=False)
                found.append(Text(prompt, source, pooling, vector))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vectors_in_one_batch_equal_peft_alone(architecture: str, tmp_path: Path) -> None:
    asked = texts(architecture, tmp_path)
    # Texts run in chunks, and of each there are two, of which the prefix cache knows the second.
    harness = Harness(
        copy.deepcopy(tiny_model(architecture)), kernels="cpu", rows=64, num_blocks=40,
        max_batch_tokens=24, max_running=6,
    )  # fmt: skip
    writing = harness.submit([5, 6, 7], max_tokens=12)
    twice = [(harness.submit(text.prompt, text.source, pooling=text.pooling), text)
             for text in asked * 2]  # fmt: skip
    harness.run()
    assert not harness.failures
    assert len(harness.output(writing)) == 12
    for request_id, text in twice:
        (found,) = harness.logits(request_id, len(text.vector))
        torch.testing.assert_close(found, text.vector, rtol=0, atol=TOLERANCE)
    assert harness.reports[-1].stats.shared_tokens > 0
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 1


def test_who_loses_its_blocks_is_embedded_from_the_beginning(tmp_path: Path) -> None:
    base = tiny_model("llama")
    wrapped = save_embedder(bare(base), tmp_path / "a", seed=1, r=4, target_modules=["q_proj"],
                            task_type="FEATURE_EXTRACTION")  # fmt: skip
    source = pack_source(tmp_path / "a", tmp_path / "a.package")
    prompt = [3 + i % 60 for i in range(30)]
    harness = Harness(copy.deepcopy(base), num_blocks=12, max_batch_tokens=4)
    others = [harness.submit([5 + i] * 4, max_tokens=16) for i in range(2)]
    request_id = harness.submit(prompt, source, pooling=Pooling.MEAN)
    harness.run()
    assert harness.reports[-1].stats.preemptions > 0
    assert all(len(harness.output(other)) == 16 for other in others)
    wanted = vector_of(expected_states(wrapped, prompt), "mean", normalize=False)
    (found,) = harness.logits(request_id, len(wanted))
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def test_an_adapter_of_the_bare_model_is_no_other_for_that(tmp_path: Path) -> None:
    base = tiny_model("llama")
    config: dict[str, Any] = {"seed": 3, "r": 4, "target_modules": ["q_proj", "up_proj"]}
    save_embedder(bare(base), tmp_path / "a", task_type="FEATURE_EXTRACTION", **config)
    save_embedder(base, tmp_path / "b", task_type="CAUSAL_LM", **config)
    harness = Harness(base)
    found = []
    for name in ("a", "b"):
        pack_source(tmp_path / name, tmp_path / f"{name}.package")
        source = source_of(tmp_path / f"{name}.package")
        found.append(harness.submit([5, 6, 7], source, max_tokens=8))
    harness.run()
    assert harness.output(found[0]) == harness.output(found[1])
