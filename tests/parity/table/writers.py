"""Methods on models that write a text to another, with an encoder and a decoder."""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peft import (
    CartridgeConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    TrainableTokensConfig,
)
from transformers import PreTrainedModel

from loramux_adapters.base import read_base
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity import test_seq2seq
from tests.parity.table import folded
from tests.parity.table.column import Cell, Column, Found, Text, demand_change, distance
from tests.parity.test_saved import last_part, norms
from tests.parity.test_seq2seq import SIZES, written
from tests.support.adapters import Expected, save_tuned
from tests.support.encoder_models import SEQ2SEQ, VOCAB, own_model, save_encoder_base
from tests.support.engine import Harness

ARCHITECTURES = tuple(SEQ2SEQ)
NUM_TOKENS = 6
TOKENS = [5, 17, 200]
"""Whose embeddings an adapter trains."""


@dataclass(frozen=True)
class Answered(Text):
    """A source, what its target begins with, and how PEFT goes on."""

    source: list[int]
    begin: list[int]
    expected: Expected

    def submit(self, harness: Harness, adapter: AdapterSource) -> int:
        num_tokens, vocab = self.expected.logprobs.shape
        return harness.submit(
            [*self.source, *self.begin], adapter, num_source=len(self.source),
            max_tokens=num_tokens, num_logprobs=vocab,
        )  # fmt: skip

    def cell(self, harness: Harness, number: int) -> Cell:
        is_same = harness.output(number) == self.expected.tokens
        return Cell(distance(harness, number, self.expected), is_same)


def configs(base: BaseModel, own: PreTrainedModel) -> dict[str, PeftConfig]:
    """Return a config of each method; `own` is the base as transformers has it."""
    names = list(base.places)
    task = {"task_type": "SEQ_2_SEQ_LM"}
    lora = task | {"r": 5, "lora_alpha": 9}
    some = lora | {"target_modules": names[:2]}
    output = last_part(own, own.get_output_embeddings())
    before = task | SIZES
    return test_seq2seq.configs(base) | {
        "dora": LoraConfig(target_modules=names, **lora, use_dora=True),
        "ranks of layers": LoraConfig(
            target_modules=names, **lora, rank_pattern={names[0]: 2, names[-1]: 11},
            alpha_pattern={names[1]: 3},
        ),
        "lora_bias": LoraConfig(target_modules=names, **lora, lora_bias=True),
        "all biases": LoraConfig(**some, bias="all"),
        "norms": LoraConfig(**some, modules_to_save=norms(own)),
        "embeddings": LoraConfig(**some, modules_to_save=["embed_tokens"]),
        "output": LoraConfig(**some, modules_to_save=[output]),
        "lora of embeddings": LoraConfig(**lora, target_modules=["embed_tokens"]),
        "lora of output": LoraConfig(**lora, target_modules=[output]),
        "ia3": IA3Config(**task, target_modules=names, feedforward_modules=names[1::2]),
        "ln tuning": LNTuningConfig(**task, target_modules=norms(own)),
        "tokens": LoraConfig(**some, trainable_token_indices={"embed_tokens": TOKENS}),
        "nothing but tokens": TrainableTokensConfig(
            **task, target_modules=["embed_tokens"], token_indices=TOKENS
        ),
        "p": PromptEncoderConfig(**before, num_virtual_tokens=3, encoder_hidden_size=16),
        "p, lstm": PromptEncoderConfig(
            **before, num_virtual_tokens=1, encoder_hidden_size=8,
            encoder_reparameterization_type="LSTM",
        ),
        "prefix, projected": PrefixTuningConfig(
            **before, num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=8
        ),
        "cartridge": CartridgeConfig(**before, num_virtual_tokens=4),
        **folded.configs(names, "SEQ_2_SEQ_LM"),
    }  # fmt: skip


def measure(name: str, folder: Path) -> dict[str, Found]:
    """Return the cells of one column."""
    saved_base = save_encoder_base(name, folder / "base")
    base = load_base_model(str(saved_base))
    own = own_model(saved_base)
    rng = random.Random(0)
    column = Column(base, folder, read_base(saved_base))

    def answered(config: PeftConfig, saved: Path, seed: int) -> list[Text]:
        wrapped = save_tuned(own, config, saved, seed=seed)
        found: list[Text] = []
        for length in (rng.choice([1, 4, 9]), rng.randint(10, 30)):
            source = [*TOKENS[:1], *(rng.randrange(3, VOCAB) for _ in range(length))]
            begin = [2, *(rng.randrange(3, VOCAB) for _ in range(length % 3))]
            expected = written(wrapped, source, begin, NUM_TOKENS)
            plain = written(own, source, begin, 1)
            demand_change(expected.logprobs[0], plain.logprobs[0])
            found.append(Answered(source, begin, expected))
        return found

    for method, config in configs(base, own).items():
        column.add(method, partial(answered, config))
    return column.run()
