"""Texts that are written to others, in one batch of many adapters: each as PEFT has it alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from transformers import GenerationConfig

from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.model_kind import ModelKind
from tests.support.adapters import Expected, pack_source, save_tuned
from tests.support.encoder_models import SEQ2SEQ, VOCAB, own_model, save_encoder_base
from tests.support.engine import Harness

TOLERANCE = 1e-4
PUT_BEFORE = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
"""Methods that put embeddings before what is read."""


@dataclass(frozen=True)
class Text:
    """A source, what its target begins with, and how PEFT goes on."""

    source: list[int]
    begin: list[int]
    adapter: AdapterSource | None
    expected: Expected


SIZES = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
"""What PEFT has to be told of each of the models."""


def configs(base: BaseModel) -> dict[str, PeftConfig]:
    """Return configs of many methods for a model with an encoder and a decoder."""
    names = list(base.places)
    lora = {"task_type": "SEQ_2_SEQ_LM", "r": 5, "lora_alpha": 9}
    return {
        "prefix": PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, **SIZES),
        "prompt": PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, **SIZES),
        "multitask": MultitaskPromptTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_tasks=1, num_ranks=2, **SIZES
        ),
        "lora": LoraConfig(target_modules=names, **lora),
        "rslora, some layers": LoraConfig(
            target_modules=names[::3], **lora | {"r": 12}, use_rslora=True
        ),
        "dora, some layers": LoraConfig(target_modules=names[1::2], **lora, use_dora=True),
        "ia3, some layers": IA3Config(
            task_type="SEQ_2_SEQ_LM", target_modules=names[:9], feedforward_modules=names[4:5]
        ),
        "modules_to_save": LoraConfig(
            target_modules=names[2::3],
            modules_to_save=[names[0], names[-1]],
            bias="lora_only",
            **lora,
        ),
    }


@torch.inference_mode()
def written(
    model: torch.nn.Module, source: Sequence[int], begin: Sequence[int], num_tokens: int
) -> Expected:
    """Return the likeliest tokens behind `begin`, one whole forward pass for each."""
    if getattr(model, "peft_type", "") in PUT_BEFORE:
        return generated(model, source, begin, num_tokens)
    tokens: list[int] = []
    rows = []
    for _ in range(num_tokens):
        logits = model(
            input_ids=torch.tensor([list(source)]),
            decoder_input_ids=torch.tensor([[*begin, *tokens]]),
            use_cache=False,
        ).logits[0, -1]
        rows.append(torch.log_softmax(logits.float(), -1))
        tokens.append(int(logits.argmax()))
    return Expected(tokens, torch.stack(rows))


def generated(
    model: torch.nn.Module, source: Sequence[int], begin: Sequence[int], num_tokens: int
) -> Expected:
    """Return the same by `generate`, in which PEFT puts virtual tokens before sources alone."""
    tuned = cast(PeftModel, model)
    # Multitask prompt tuning wants to know of which task a text is.
    task = {"task_ids": torch.tensor([0])} if "MULTITASK" in tuned.peft_type else {}
    tuned.get_base_model().generation_config = GenerationConfig()  # which may force a last token
    found = tuned.generate(
        input_ids=torch.tensor([list(source)]),
        attention_mask=torch.ones(1, len(source), dtype=torch.long),
        decoder_input_ids=torch.tensor([list(begin)]),
        generation_config=GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, pad_token_id=0, decoder_start_token_id=2,
            return_dict_in_generate=True, output_logits=True,
        ),
        **task,
    )  # fmt: skip
    rows = torch.stack([torch.log_softmax(logits[0].float(), -1) for logits in found.logits])
    return Expected(found.sequences[0, len(begin) :].tolist(), rows)


def models_of(base: BaseModel, folder: Path) -> list[tuple[torch.nn.Module, AdapterSource | None]]:
    """Return the model in `folder` alone and with each adapter, as PEFT has it and as we have."""
    own = own_model(folder)
    models: list[tuple[torch.nn.Module, AdapterSource | None]] = [(own, None)]
    for seed, config in enumerate(configs(base).values()):
        saved = folder / f"adapter-{seed}"
        wrapped = save_tuned(own, config, saved, seed=seed)
        models.append((wrapped, pack_source(saved, folder / f"{seed}.package")))
    return models


def texts(base: BaseModel, folder: Path) -> list[Text]:
    rng = random.Random(5)
    found = []
    for wrapped, adapter in models_of(base, folder):
        for length in (1, 9, 20):
            source = [rng.randrange(3, VOCAB) for _ in range(length)]
            begin = [2, *(rng.randrange(3, VOCAB) for _ in range(length % 3))]
            found.append(Text(source, begin, adapter, written(wrapped, source, begin, 6)))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_texts_of_one_batch_equal_peft_alone(name: str, tmp_path: Path) -> None:
    base = load_base_model(str(save_encoder_base(name, tmp_path)))
    assert base.kind is ModelKind.SEQ2SEQ
    asked = texts(base, tmp_path)
    harness = Harness(
        base, kernels="cpu", rows=256, max_batch_tokens=24, max_running=8, num_blocks=16
    )
    wanted = {}
    # Each twice: the second finds what the first knew, if both are under way.
    for index, text in enumerate([*asked, *asked]):
        request_id = harness.submit(
            [*text.source, *text.begin], text.adapter, num_source=len(text.source),
            max_tokens=len(text.expected.tokens), num_logprobs=VOCAB,
        )  # fmt: skip
        wanted[request_id] = text
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, text in wanted.items():
        assert harness.output(request_id) == text.expected.tokens
        for reported, row in zip(harness.tokens[request_id], text.expected.logprobs, strict=True):
            assert reported.logprobs is not None
            for token, logprob in reported.logprobs.top:
                assert abs(logprob - row[token].item()) < TOLERANCE
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 2
    assert harness.reports[-1].stats.preemptions
