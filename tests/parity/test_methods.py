"""Rows of every method that is served, in one batch, each equal to PEFT with that adapter alone."""

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    CartridgeConfig,
    CPTConfig,
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import PreTrainedModel

from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_peft import Case, check, target_modules
from tests.parity.test_saved import last_part, norms
from tests.support.adapters import expected, pack_source, quiet_peft, with_adapter
from tests.support.engine import Harness
from tests.support.models import CONFIGS, RECURRENT, VOCAB, tiny_model

TOLERANCE = 2e-4


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=6, lora_alpha=9, **fields)


def configs(model: PreTrainedModel) -> dict[str, PeftConfig]:
    """Return a config of each method for `model`."""
    names = target_modules(model)[0]
    embedding = last_part(model, model.get_input_embeddings())
    output = last_part(model, model.get_output_embeddings())
    first, last = names[: len(names) // 2], names[len(names) // 2 :]
    return {
        "lora": lora(target_modules=names),
        "dora": lora(target_modules=names, use_dora=True),
        "dora, some layers": lora(target_modules=first, use_dora=True, use_rslora=True),
        "lora_bias": lora(target_modules=names, lora_bias=True),
        "modules_to_save": lora(
            target_modules=first, modules_to_save=[*norms(model), embedding, output, last[-1]]
        ),
        "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=names, feedforward_modules=last),
        "ia3, some layers": IA3Config(
            task_type="CAUSAL_LM", target_modules=last, feedforward_modules=last[:1]
        ),
        **virtual_configs(),
    }


def virtual_configs() -> dict[str, PeftConfig]:
    """Return a config of each method of virtual tokens."""
    task, count = {"task_type": "CAUSAL_LM"}, 6  # more than a block
    return {
        "prompt": PromptTuningConfig(num_virtual_tokens=30, **task),  # more than a chunk
        "p": PromptEncoderConfig(num_virtual_tokens=count, encoder_hidden_size=8, **task),
        "p, lstm": PromptEncoderConfig(
            num_virtual_tokens=1, encoder_hidden_size=8, encoder_reparameterization_type="LSTM",
            **task,
        ),
        "cpt": CPTConfig(
            cpt_token_ids=[5, 9, 23, 42, 7], cpt_mask=[1] * 5, cpt_tokens_type_mask=[1, 2, 3, 3, 4],
            **task,
        ),
        "multitask": MultitaskPromptTuningConfig(
            num_virtual_tokens=count, num_tasks=1, num_ranks=2, **task
        ),
        "prefix": PrefixTuningConfig(num_virtual_tokens=30, **task),
        "prefix, projected": PrefixTuningConfig(
            num_virtual_tokens=count, prefix_projection=True, encoder_hidden_size=8, **task
        ),
        "cartridge": CartridgeConfig(num_virtual_tokens=count, **task),
    }  # fmt: skip


def save(model: PreTrainedModel, config: PeftConfig, folder: Path, seed: int) -> Path:
    """Save an adapter whose every weight is random to `folder`."""
    torch.manual_seed(seed)
    with quiet_peft():
        wrapped = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                weight.normal_(std=0.5 / weight.shape[-1] ** 0.5)
            elif ".modules_to_save." in name or (name.endswith(".bias") and weight.requires_grad):
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "magnitude" in name or "ia3_l" in name:
                weight.mul_(torch.empty_like(weight).uniform_(0.5, 1.5))
            elif name.startswith("prompt_encoder."):
                weight.normal_(std=0.5)
    with quiet_peft():  # it takes the bias of B for a broken matrix
        wrapped.save_pretrained(str(folder))
    return folder


def vector_configs(model: PreTrainedModel) -> dict[str, PeftConfig]:
    """Return configs of methods that need no layer of the model to be run by itself."""
    names = target_modules(model)[0]
    return {
        "lora": lora(target_modules=names),
        "dora": lora(target_modules=names, use_dora=True),
        "dora with biases": lora(target_modules=names[1:], use_dora=True, bias="all"),
        "biases": lora(target_modules=names[:1], bias="all"),
        "lora_bias": lora(target_modules=names, lora_bias=True),
        # What multiplies the input of down is taken for a factor of up.
        "ia3": IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "up_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
    }  # fmt: skip


def cases(model: PreTrainedModel, folder: Path, configs: Mapping[str, PeftConfig]) -> list[Case]:
    rng = random.Random(0)
    found = []
    for seed, (name, config) in enumerate({"base": None, **configs}.items()):
        source: AdapterSource | None = None
        wrapped: torch.nn.Module = model
        if config is not None:
            saved = save(model, config, folder / name, seed)
            wrapped, source = with_adapter(model, saved), pack_source(saved, folder / f"{seed}.pkg")
        for _ in range(2):
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 30))]
            found.append(Case(prompt, source, expected(wrapped, prompt, rng.randint(2, 8))))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("architecture", [*CONFIGS, "qwen3.5"])
def test_every_method_in_one_batch_equals_peft_alone(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    methods = configs(model)
    if architecture in RECURRENT:  # PEFT makes no cache of states, nor do we
        caches = (PrefixTuningConfig, CartridgeConfig)
        methods = {name: each for name, each in methods.items() if not isinstance(each, caches)}
    requests = cases(model, tmp_path, methods)
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=256, num_blocks=200, max_batch_tokens=24,
        max_running=8,
    )  # fmt: skip
    _check(harness, requests)


@pytest.mark.parametrize("architecture", ["llama", "llama-bias", "qwen2", "qwen3"])
def test_factors_and_shifts_go_the_way_of_low_rank_changes(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(std=0.2)
    requests = cases(model, tmp_path, vector_configs(model))
    base = prepare(copy.deepcopy(model))
    harness = Harness(base, kernels="cpu", rows=256, num_blocks=200, max_batch_tokens=24)
    assert base.stack
    for layer in base.stack.originals:
        monkeypatch.setattr(layer, "forward", None)  # whoever calls it fails
    _check(harness, requests)


def _check(harness: Harness, requests: list[Case]) -> None:
    for index, case in enumerate(requests):
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case, TOLERANCE)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_starts_that_change_the_base_are_served_as_peft_converts_them(
    use_rslora: bool, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    prompt = [5, 9, 23, 42, 7]
    requests = []
    for start in ("pissa", "olora"):
        config = LoraConfig(
            task_type="CAUSAL_LM", r=3, lora_alpha=6, init_lora_weights=start,
            target_modules=["q_proj", "down_proj"],
            rank_pattern={} if use_rslora else {"down_proj": 2},  # PEFT converts not both
            use_rslora=use_rslora,
        )  # fmt: skip
        torch.manual_seed(1)
        with quiet_peft():
            wrapped = get_peft_model(copy.deepcopy(model), config)
            wrapped.peft_config["default"].init_lora_weights = True
            wrapped.save_pretrained(str(tmp_path / "start"))
            wrapped.peft_config["default"].init_lora_weights = start
            with torch.no_grad():
                for weight in wrapped.parameters():
                    if weight.requires_grad:
                        weight.add_(torch.randn_like(weight) * 0.2)
            wanted = expected(wrapped.eval(), prompt, 5)
            wrapped.save_pretrained(
                str(tmp_path / start),
                path_initial_model_for_weight_conversion=str(tmp_path / "start"),
            )
        source = pack_source(tmp_path / start, tmp_path / f"{start}.safetensors")
        requests.append(Case(prompt, source, wanted))
    _check(Harness(copy.deepcopy(model), kernels="cpu", rows=256, num_blocks=60), requests)
