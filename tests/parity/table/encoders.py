"""Methods on models that read texts, without a head and with one for each task."""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import (
    CartridgeConfig,
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    TrainableTokensConfig,
)
from transformers import PreTrainedModel

from loramux_adapters.base import read_base
from loramux_adapters.embedding import Pooling
from loramux_adapters.head import Task
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity import test_classifiers, test_encoders, test_virtual_heads
from tests.parity.table import folded
from tests.parity.table.column import Cell, Column, Found, Read, Text, demand_change
from tests.parity.test_encoders import TOKENS, norms, sizes, states_of
from tests.support.adapters import save_tuned
from tests.support.classifiers import tasks_of
from tests.support.embedders import vector_of
from tests.support.encoder_heads import for_task
from tests.support.encoder_models import ENCODERS, VOCAB, lost_of, own_model, save_encoder_base
from tests.support.engine import Harness

ARCHITECTURES = tuple(ENCODERS)


@dataclass(frozen=True)
class Embedded(Text):
    """A text that is made a vector."""

    tokens: list[int]
    second_from: int
    pooling: Pooling
    states: torch.Tensor

    def submit(self, harness: Harness, adapter: AdapterSource) -> int:
        return harness.submit(
            self.tokens, adapter, pooling=self.pooling, second_from=self.second_from
        )

    def cell(self, harness: Harness, number: int) -> Cell:
        wanted = vector_of(self.states, self.pooling, normalize=False)
        return Cell(float((harness.logits(number, len(wanted))[0] - wanted).abs().max()))


def configs(base: BaseModel) -> dict[str, PeftConfig]:
    """Return a config of each method for adapters without a head."""
    names = list(base.places)
    task = {"task_type": "FEATURE_EXTRACTION"}
    lora = task | {"r": 5, "lora_alpha": 9}
    embedding = base.replaceable.vocabulary.embedding
    before = task | sizes(base)
    keys = before | {"token_dim": 32}
    return test_encoders.configs(base) | {
        "dora": LoraConfig(target_modules=names, **lora, use_dora=True),
        "ranks of layers": LoraConfig(
            target_modules=names, **lora, rank_pattern={names[0]: 2, names[-1]: 11},
            alpha_pattern={names[1]: 3},
        ),
        "lora_bias": LoraConfig(target_modules=names, **lora, lora_bias=True),
        "norms": LoraConfig(target_modules=names[:2], **lora, modules_to_save=norms(base)),
        "embeddings": LoraConfig(target_modules=names[:2], **lora, modules_to_save=[embedding]),
        "dora of embeddings": LoraConfig(target_modules=[embedding], **lora, use_dora=True),
        "ia3": IA3Config(**task, target_modules=names, feedforward_modules=names[1::2]),
        "nothing but tokens": TrainableTokensConfig(
            **task, target_modules=[embedding.rpartition(".")[2]], token_indices=TOKENS
        ),
        "p, lstm": PromptEncoderConfig(
            **before, num_virtual_tokens=1, encoder_hidden_size=8,
            encoder_reparameterization_type="LSTM",
        ),
        "multitask": MultitaskPromptTuningConfig(
            **before, num_virtual_tokens=4, num_tasks=1, num_ranks=2
        ),
        "prefix": PrefixTuningConfig(**keys, num_virtual_tokens=4),
        "prefix, projected": PrefixTuningConfig(
            **keys, num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=8
        ),
        "cartridge": CartridgeConfig(**keys, num_virtual_tokens=4),
        **folded.configs(names, "FEATURE_EXTRACTION"),
    }  # fmt: skip


def headed_configs(base: BaseModel, name: str, task: Task) -> dict[str, PeftConfig]:
    """Return a config of each method for adapters with a head, on the encoder called `name`."""
    found = test_classifiers.configs(task, list(base.places), norms(base))
    found |= folded.configs(list(base.places), str(task))
    found |= test_encoders.virtual_configs(base, str(task))
    found["multitask"] = MultitaskPromptTuningConfig(
        task_type=str(task), num_virtual_tokens=4, num_tasks=1, num_ranks=2, **sizes(base)
    )
    for config in found.values():
        config.modules_to_save = [*(config.modules_to_save or []), *lost_of(name, task)] or None
    return found


def measure(name: str, folder: Path) -> dict[str, Found]:
    """Return the cells of one column."""
    saved_base = save_encoder_base(name, folder / "base")
    base = load_base_model(str(saved_base))
    own = own_model(saved_base)
    rng = random.Random(0)
    column = Column(base, folder, read_base(saved_base))

    def lengths() -> tuple[int, int]:
        return rng.choice([1, 4, 9]), rng.randint(10, 30)

    def embedded(config: PeftConfig, saved: Path, seed: int) -> list[Text]:
        wrapped = save_tuned(own, config, saved, seed=seed)
        found: list[Text] = []
        for length in lengths():
            tokens = [*TOKENS[:1], *(rng.randrange(3, VOCAB) for _ in range(length))]
            # PEFT takes no token types beside virtual tokens, which embed single texts.
            has_types = base.takes_token_types and not config.is_prompt_learning
            second = rng.choice([0, 1 + length // 2]) if has_types else 0
            states, plain = (
                states_of(model, tokens, second if has_types else None) for model in (wrapped, own)
            )
            demand_change(states[-1], plain[-1])
            found += [Embedded(tokens, second, pooling, states) for pooling in Pooling]
        return found

    def read(
        model: PreTrainedModel, task: Task, config: PeftConfig, saved: Path, seed: int
    ) -> list[Text]:
        wrapped = save_tuned(model, config, saved, seed=seed)
        texts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths()]
        return [
            Read(tokens, test_virtual_heads.expected(wrapped, task, tokens, [])) for tokens in texts
        ]

    for method, config in configs(base).items():
        column.add(method, partial(embedded, config))
    for task in tasks_of(own):
        model = for_task(saved_base, task)
        for method, config in headed_configs(base, name, task).items():
            column.add(f"head: {task}, {method}", partial(read, model, task, config))
    return column.run()
