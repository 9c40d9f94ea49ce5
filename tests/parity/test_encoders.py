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
from loramux_server.engine.adapter_source import AdapterSource
from loramux_server.engine.model_kind import ModelKind
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from tests.support.adapters import pack_source, save_tuned
from tests.support.embedders import vector_of
from tests.support.engine import Harness
from tests.support.whole_models import ENCODERS, VOCAB, own_model, save_whole

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Text:
    """A text, and what PEFT makes of it."""

    tokens: list[int]
    source: AdapterSource | None
    second_from: int
    states: torch.Tensor


def configs(base: BaseModel) -> list[PeftConfig]:
    names = list(base.places)
    task = {"task_type": "FEATURE_EXTRACTION"}
    lora = task | {"r": 5, "lora_alpha": 9}
    embedding = base.replaceable.vocabulary.embedding
    sizes = {
        "token_dim": base.module.get_input_embeddings().weight.shape[1],
        "num_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    norms = [
        name for name, part in base.module.named_modules() if "norm" in type(part).__name__.lower()
    ]
    return [
        LoraConfig(target_modules=names, **lora),
        LoraConfig(target_modules=names[::2], **lora | {"r": 12}, use_rslora=True),
        LoraConfig(target_modules=names[1::2], **lora, use_dora=True),
        LoraConfig(target_modules=names[:3], **lora, bias="lora_only"),
        LoraConfig(target_modules=names[:2], **lora, bias="all"),
        LoraConfig(target_modules=names[2:4], **lora, modules_to_save=[*norms, names[0]]),
        LoraConfig(target_modules=[embedding, names[1]], **lora),
        LoraConfig(
            target_modules=names[1:2],
            **lora,
            trainable_token_indices={embedding.rpartition(".")[2]: [5, 17, 200]},
        ),
        LNTuningConfig(**task, target_modules=norms),
        IA3Config(**task, target_modules=names[:4], feedforward_modules=names[3:4]),
        *(
            [PrefixTuningConfig(**task, num_virtual_tokens=4, **sizes | {"token_dim": 32})]
            if base.prefix_shapes
            else []
        ),
        PromptTuningConfig(**task, num_virtual_tokens=4, **sizes),
        PromptEncoderConfig(**task, num_virtual_tokens=3, encoder_hidden_size=16, **sizes),
    ]


def texts(base: BaseModel, folder: Path) -> list[Text]:
    own = own_model(folder)
    models: list[tuple[torch.nn.Module, AdapterSource | None]] = [(own, None)]
    for seed, config in enumerate(configs(base)):
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
            types = {}
            if base.takes_token_types and not has_virtual:
                types["token_type_ids"] = torch.tensor([[0] * second + [1] * (length - second)])
                if not second:
                    types["token_type_ids"].zero_()
            with torch.inference_mode():
                states = wrapped(input_ids=torch.tensor([tokens]), **types)[0][0]
            found.append(Text(tokens, source, second, states))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize("name", ENCODERS)
def test_texts_of_one_batch_equal_peft_alone(name: str, kernels: str, tmp_path: Path) -> None:
    base = load_base_model(str(save_whole(name, tmp_path)))
    assert base.kind is ModelKind.ENCODER
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
