"""Methods on models that continue texts, against PEFT alone and against what it merges."""

import copy
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from loramux_adapters.base import read_base
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity import test_classifiers, test_experts, test_methods, test_saved
from tests.parity.table import folded
from tests.parity.table.column import Cell, Column, Found, Read, Text, distance
from tests.parity.test_peft import target_modules
from tests.support.adapters import Expected, expected, quiet_peft, save_tuned, with_adapter
from tests.support.classifiers import classifier, expected_logits, tasks_of
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "phi", "gpt2", "gpt-neox",
    "qwen3-moe", "qwen3.5",
)  # fmt: skip
NUM_TOKENS = 6
_SAME_TO_PEFT = 1e-2
"""Rounding is below; two models that differ are above."""
Save = Callable[[PreTrainedModel, PeftConfig, Path, int], Path]


@dataclass(frozen=True)
class Continued(Text):
    """A prompt, and how PEFT continues it."""

    prompt: list[int]
    alone: Expected
    merged: Expected | None
    """What the merged model says of the same tokens."""

    def submit(self, harness: Harness, adapter: AdapterSource) -> int:
        num_tokens, vocab = self.alone.logprobs.shape
        return harness.submit(self.prompt, adapter, max_tokens=num_tokens, num_logprobs=vocab)

    def cell(self, harness: Harness, number: int) -> Cell:
        merged = None
        if self.merged:
            is_other = (self.alone.logprobs - self.merged.logprobs).abs().max() > _SAME_TO_PEFT
            merged = math.nan if is_other else distance(harness, number, self.merged)
        is_same = harness.output(number) == self.alone.tokens
        return Cell(distance(harness, number, self.alone), is_same, merged)


def methods(model: PreTrainedModel) -> Mapping[str, tuple[PeftConfig, Save]]:
    """Return each method's config for `model`, and what saves an adapter of it."""
    kinds = {name: (config, test_methods.save) for name, config in
             test_methods.configs(model).items()}  # fmt: skip
    names = target_modules(model)[0]
    kinds |= {name: (config, _save) for name, config in
              folded.configs(names, "CAUSAL_LM").items()}  # fmt: skip
    others = {name: (config, test_saved.save) for name, config in test_saved.configs(model).items()}
    kinds |= {f"beside layers: {name}": found for name, found in others.items()}
    if hasattr(model.config, "num_experts"):
        experts = {name: (config, test_methods.save) for name, config in
                   test_experts.configs().items() if config.target_parameters}  # fmt: skip
        kinds |= {f"of experts: {name}": found for name, found in experts.items()}
    return kinds


def measure(architecture: str, folder: Path) -> dict[str, Found]:
    """Return the cells of one column."""
    model = tiny_model(architecture)
    rng = random.Random(0)
    model.save_pretrained(str(folder / "base"))
    column = Column(copy.deepcopy(model), folder, read_base(folder / "base"))

    def continued(config: PeftConfig, save: Save, saved: Path, seed: int) -> list[Text]:
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 20))]
        wrapped = with_adapter(model, save(model, config, saved, seed))
        alone = expected(wrapped, prompt, NUM_TOKENS)
        merged = _merged(wrapped)
        # Along the same tokens, whatever rounding would have made of them.
        return [Continued(prompt, alone, _along(merged, prompt, alone.tokens) if merged else None)]

    def read(base: PreTrainedModel, config: PeftConfig, saved: Path, seed: int) -> list[Text]:
        wrapped = save_tuned(base, config, saved, seed=seed)
        lengths = (rng.choice([1, 4, 9]), rng.randint(10, 30))
        texts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]
        return [Read(tokens, expected_logits(wrapped, tokens)) for tokens in texts]

    for name, (config, save) in methods(model).items():
        column.add(name, partial(continued, config, save))
    for task in tasks_of(model):
        base = classifier(model, task, num_labels=3)
        names = target_modules(model)[0]
        configs = test_classifiers.configs(task, names, test_saved.norms(model))
        configs |= folded.configs(names, str(task))
        for name, config in configs.items():
            column.add(f"head: {task}, {name}", partial(read, base, config))
    return column.run()


def _save(model: PreTrainedModel, config: PeftConfig, folder: Path, seed: int) -> Path:
    save_tuned(model, config, folder, seed=seed)
    return folder


def _merged(wrapped: nn.Module) -> nn.Module | None:
    try:
        with quiet_peft():
            merged: nn.Module = copy.deepcopy(wrapped).merge_and_unload()  # type: ignore[operator]
    except Exception:  # whatever PEFT says of a method that it does not merge
        return None
    return merged


@torch.inference_mode()
def _along(model: nn.Module, prompt: list[int], tokens: list[int]) -> Expected:
    """Return what `model` says after each of `tokens`."""
    logits = model(input_ids=torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
    return Expected(tokens, torch.log_softmax(logits[len(prompt) - 1 :].float(), -1))
