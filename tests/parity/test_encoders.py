"""Texts that an encoder reads, in one batch of many adapters: each as PEFT has it alone."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)

from loramux_adapters.embedding import Pooling
from loramux_server.models.base_model import BaseModel
from loramux_server.models.encoders.encoder_model import enable_padding
from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.model_kind import ModelKind
from tests.support.adapters import pack_source, save_tuned
from tests.support.embedders import vector_of
from tests.support.encoder_models import ENCODERS, VOCAB, own_model, save_encoder_base
from tests.support.engine import Harness

TOLERANCE = 1e-4
TOKENS = [5, 17, 200]
"""Whose embeddings an adapter trains."""


@dataclass(frozen=True)
class Text:
    """A text, and what PEFT makes of it."""

    tokens: list[int]
    source: AdapterSource | None
    second_from: int
    states: torch.Tensor


def norms(base: BaseModel) -> list[str]:
    """Return the names of the norms of an encoder."""
    return [
        name for name, part in base.module.named_modules() if "norm" in type(part).__name__.lower()
    ]


def sizes(base: BaseModel) -> dict[str, int]:
    """Return what PEFT has to be told of an encoder by which it puts embeddings before a text."""
    width = base.module.get_input_embeddings().weight.shape[1]
    return {"token_dim": width, "num_layers": 2, "num_attention_heads": 4}


def configs(base: BaseModel) -> dict[str, PeftConfig]:
    """Return configs of many methods for an encoder."""
    names = list(base.places)
    task = {"task_type": "FEATURE_EXTRACTION"}
    lora = task | {"r": 5, "lora_alpha": 9}
    embedding = base.replaceable.vocabulary.embedding
    return {
        "lora": LoraConfig(target_modules=names, **lora),
        "rslora, some layers": LoraConfig(
            target_modules=names[::2], **lora | {"r": 12}, use_rslora=True
        ),
        "dora, some layers": LoraConfig(target_modules=names[1::2], **lora, use_dora=True),
        "biases of layers": LoraConfig(target_modules=names[:3], **lora, bias="lora_only"),
        "all biases": LoraConfig(target_modules=names[:2], **lora, bias="all"),
        "modules_to_save": LoraConfig(
            target_modules=names[2:4], **lora, modules_to_save=[*norms(base), names[0]]
        ),
        "lora of embeddings": LoraConfig(target_modules=[embedding, names[1]], **lora),
        "tokens": LoraConfig(
            target_modules=names[1:2],
            **lora,
            trainable_token_indices={embedding.rpartition(".")[2]: TOKENS},
        ),
        "ln tuning": LNTuningConfig(**task, target_modules=norms(base)),
        "ia3, some layers": IA3Config(
            **task, target_modules=names[:4], feedforward_modules=names[3:4]
        ),
        **virtual_configs(base, "FEATURE_EXTRACTION"),
    }  # fmt: skip


def virtual_configs(base: BaseModel, task: str) -> dict[str, PeftConfig]:
    """Return configs of methods of virtual tokens for an encoder, for a `task_type` of PEFT."""
    common = {"task_type": task, "num_virtual_tokens": 4}
    before = sizes(base)
    prefix = PrefixTuningConfig(**common, **before | {"token_dim": 32})
    return {
        **({"prefix": prefix} if base.prefix_shapes else {}),
        "prompt": PromptTuningConfig(**common, **before),
        "p": PromptEncoderConfig(
            **common | {"num_virtual_tokens": 3}, encoder_hidden_size=16, **before
        ),
    }


@torch.inference_mode()
def states_of(
    model: torch.nn.Module, tokens: list[int], second_from: int | None = None
) -> torch.Tensor:
    """Return the last hidden states of a text, [tokens, width].

    Args:
        model: The encoder, alone or as PEFT has it.
        tokens: The text.
        second_from: Where a second text begins in it, 0 if none does; None tells the model nothing.
    """
    reported = {}
    if second_from is not None:
        places = torch.arange(len(tokens))
        reported["token_type_ids"] = (places >= (second_from or len(tokens))).long()[None]
    states: torch.Tensor = model(input_ids=torch.tensor([tokens]), **reported)[0][0]
    return states


def texts(base: BaseModel, folder: Path) -> list[Text]:
    own = own_model(folder)
    models: list[tuple[torch.nn.Module, AdapterSource | None]] = [(own, None)]
    for seed, config in enumerate(configs(base).values()):
        saved = folder / f"adapter-{seed}"
        wrapped = save_tuned(own, config, saved, seed=seed)
        models.append((wrapped, pack_source(saved, folder / f"{seed}.package")))
    rng = random.Random(4)
    found = []
    for wrapped, source in models:
        for length in (1, 9, 9, 30):
            tokens = [rng.randrange(3, VOCAB) for _ in range(length)]
            # PEFT takes no token types beside virtual tokens, which embed single texts.
            has_virtual = source is not None and source.virtual_tokens > 0
            second = 0 if has_virtual else rng.choice([0, length // 2])
            has_types = base.takes_token_types and not has_virtual
            states = states_of(wrapped, tokens, second if has_types else None)
            found.append(Text(tokens, source, second, states))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize(("kernels", "at_once"), [("torch", False), ("cpu", False), ("cpu", True)])
@pytest.mark.parametrize("name", ENCODERS)
def test_texts_of_one_batch_equal_peft_alone(
    name: str, kernels: str, at_once: bool, tmp_path: Path
) -> None:
    base = load_base_model(str(save_encoder_base(name, tmp_path)))
    assert base.kind is ModelKind.ENCODER
    if at_once:
        assert base.encoder_runner is not None
        enable_padding(base.encoder_runner, base.check)
        assert base.encoder_runner.pads_texts == (name != "deberta-v2")
    asked = texts(base, tmp_path)
    harness = Harness(base, kernels=kernels, rows=256, max_batch_tokens=24, max_running=8)
    wanted = {}
    for index, text in enumerate(asked):
        for pooling in (Pooling.MEAN, Pooling.FIRST, Pooling.LAST)[: 1 + index % 3]:
            request_id = harness.submit(
                text.tokens, text.source, pooling=pooling, second_from=text.second_from
            )
            wanted[request_id] = vector_of(text.states, pooling, normalize=False)
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, vector in wanted.items():
        found = harness.logits(request_id, len(vector))[0]
        torch.testing.assert_close(found, vector, rtol=0, atol=TOLERANCE)
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 2


@pytest.mark.parametrize("padding", [0, 1])
@torch.inference_mode()
def test_virtual_tokens_are_no_padding_whatever_token_that_is(padding: int, tmp_path: Path) -> None:
    folder = save_encoder_base("roberta", tmp_path / "base", pad_token_id=padding)
    base, own = load_base_model(str(folder)), own_model(folder)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4, **sizes(base))
    wrapped = save_tuned(own, config, tmp_path / "adapter", seed=1)
    harness = Harness(base)
    tokens = [7, 40, 23, 9]
    request_id = harness.submit(
        tokens, pack_source(tmp_path / "adapter", tmp_path / "package"), pooling=Pooling.MEAN
    )
    harness.run()
    wanted = vector_of(states_of(wrapped, tokens), Pooling.MEAN, normalize=False)
    found = harness.logits(request_id, len(wanted))[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
