"""Modules that were trained whole, embeddings, the output layer and rows of tokens: as PEFT."""

import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel

from loramux_server.store.check import check_package
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_peft import Case, check, target_modules
from tests.support.adapters import expected, pack_source, quiet_peft, with_adapter
from tests.support.bases import ROOMY
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model

TOLERANCE = 2e-4
TOKENS = [40, 7, 96, 3]
MODELS = {
    "llama": "llama", "llama, tied": "llama", "qwen3": "qwen3", "qwen3-moe": "qwen3-moe",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3", "phi": "phi", "gpt2": "gpt2",
    "gpt-neox": "gpt-neox", "opt": "opt", "qwen3.5": "qwen3.5",
}  # fmt: skip


def make(name: str) -> PreTrainedModel:
    model = MODELS[name]
    return tiny_model(model, tie_word_embeddings=True) if "tied" in name else tiny_model(model)


def last_part(model: PreTrainedModel, module: nn.Module) -> str:
    """Return the last part of the name of `module`."""
    name: str = next(name for name, part in model.named_modules() if part is module)
    return name.rpartition(".")[2]


def lora(targets: list[str], **fields: object) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets, **fields
    )  # fmt: skip


def norms(model: PreTrainedModel) -> list[str]:
    """Return what PEFT finds the norms of `model` by, but for those inside of recurrent layers."""
    names = [name for name, part in model.named_modules() if "Norm" in type(part).__name__]
    inside = {name.rpartition(".")[2] for name in names if ".linear_attn." in name}
    outside = [name for name in names if ".linear_attn." not in name]
    return sorted({
        name if last in inside else last for name in outside for last in [name.rpartition(".")[2]]
    })  # fmt: skip


def configs(model: PreTrainedModel) -> dict[str, PeftConfig]:
    """Return configs that change other modules of `model` than its layers."""
    layers = target_modules(model)[0]
    embedding = last_part(model, model.get_input_embeddings())
    output = last_part(model, model.get_output_embeddings())
    some = layers[:2]
    return {
        "norms": lora(some, modules_to_save=norms(model)),
        "embeddings": lora(some, modules_to_save=[embedding]),
        "output": lora(some, modules_to_save=[output]),
        "all of these": lora(some, modules_to_save=[embedding, output, *norms(model), layers[-1]]),
        "ia3": IA3Config(
            task_type="CAUSAL_LM", target_modules=some, feedforward_modules=[],
            modules_to_save=[output, layers[-1]],
        ),
        "all biases": lora(some, bias="all"),
        "lora of embeddings": lora([*some, embedding], use_rslora=True),
        "lora of output": lora([*some, output]),
        "dora of both": lora([embedding, output], use_dora=True),
        "lora, tied": lora([embedding], ensure_weight_tying=True),
        "ln tuning": LNTuningConfig(
            task_type="CAUSAL_LM", target_modules=norms(model), modules_to_save=[output]
        ),
        "tokens": lora(some, trainable_token_indices=TOKENS),
        "nothing but tokens": TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=TOKENS),
        "tokens of output": lora(
            some, trainable_token_indices={embedding: TOKENS, output: TOKENS[:2]}
        ),
    }  # fmt: skip


def save(
    model: PreTrainedModel, config: PeftConfig, folder: Path, seed: int,
    save_embedding_layers: bool | str = "auto",
) -> Path:  # fmt: skip
    """Save an adapter each of whose trained weights is far from where it began to `folder`."""
    torch.manual_seed(seed)
    with quiet_peft():
        wrapped = get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.2)
        wrapped.save_pretrained(str(folder), save_embedding_layers=save_embedding_layers)
    return folder


def fits(harness: Harness, cases: list[Case]) -> None:
    """Check each adapter as an upload would be."""
    layers = {name: (x.in_features, x.out_features) for name, x in harness.info.layers.items()}
    parameters = {name: tuple(shape) for name, shape in harness.info.parameters.items()}
    base = replace(
        ROOMY, layers=layers, max_rows=4096, parameters=parameters,
        vocabulary=harness.info.vocabulary,
    )  # fmt: skip
    for source in filter(None, (case.source for case in cases)):
        with Path(source.path).open("rb") as file:
            check_package(file, Path(source.path).stat().st_size, base)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_layer_equals_peft(name: str, tmp_path: Path) -> None:
    model = make(name)
    rng = random.Random(0)
    cases = []
    for seed, (method, config) in enumerate({"base": None, **configs(model)}.items()):
        source: AdapterSource | None = None
        wrapped: nn.Module = model
        if config is not None:
            saved = save(model, config, tmp_path / method, seed)
            wrapped, source = with_adapter(model, saved), pack_source(saved, tmp_path / f"{seed}")
        for _ in range(2):
            prompt = [rng.choice([*TOKENS, rng.randrange(3, VOCAB)]) for _ in range(9)]
            cases.append(Case(prompt, source, expected(wrapped, prompt, 3)))
    rng.shuffle(cases)
    kernels = "torch" if name == "llama" else "cpu"
    harness = Harness(
        copy.deepcopy(model), kernels=kernels, rows=1024, num_blocks=200, max_batch_tokens=24,
        max_running=8,
    )  # fmt: skip
    fits(harness, cases)
    for index, case in enumerate(cases):
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
        if index % 3 == 2:
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, case in enumerate(cases):
        check(harness, request_id, case, TOLERANCE)


GROWN, SHRUNK = VOCAB + 5, VOCAB - 6


def resized_configs(model: PreTrainedModel) -> dict[str, tuple[int, PeftConfig]]:
    """Return configs for `model` with another vocabulary, and how many tokens that has."""
    layers = target_modules(model)[0][:2]
    embedding = last_part(model, model.get_input_embeddings())
    output = last_part(model, model.get_output_embeddings())
    added = list(range(VOCAB, GROWN))
    both = {embedding: [*added, 7], output: [*added, 9]}
    return {
        "whole": (GROWN, lora(layers, modules_to_save=[embedding, output])),
        "saved beside": (GROWN, lora(layers)),
        "adapted": (GROWN, lora([*layers, embedding, output])),
        "rows": (GROWN, lora(layers, trainable_token_indices=both)),
        "shrunk": (SHRUNK, lora(layers, modules_to_save=[embedding, output])),
    }


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gemma2", "gpt2"])
def test_a_resized_vocabulary_is_that_adapters_alone(name: str, tmp_path: Path) -> None:
    model = make(name)
    rng = random.Random(0)
    cases = [Case([3, 4, 40], None, expected(model, [3, 4, 40], 3)) for _ in range(2)]
    for seed, (method, (size, config)) in enumerate(resized_configs(model).items()):
        resized = copy.deepcopy(model)
        with quiet_peft():
            resized.resize_token_embeddings(size, mean_resizing=False)
        beside = method != "whole"
        saved = save(resized, config, tmp_path / method, seed, save_embedding_layers=beside)
        wrapped = with_adapter(resized, saved)
        source = pack_source(saved, tmp_path / f"{seed}", size)
        for _ in range(2):
            prompt = [size - 1, *(rng.randrange(3, size) for _ in range(6)), size - 3]
            cases.append(Case(prompt, source, expected(wrapped, prompt, 3)))
    rng.shuffle(cases)
    harness = Harness(
        copy.deepcopy(model), kernels="cpu", rows=2048, num_blocks=200, max_batch_tokens=24,
        max_running=8,
    )  # fmt: skip
    fits(harness, cases)
    for index, case in enumerate(cases):
        size = case.source.vocab_size if case.source else VOCAB
        harness.submit(case.prompt, case.source, max_tokens=3, num_logprobs=size)
        if index % 3 == 2:
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, case in enumerate(cases):
        check(harness, request_id, case, TOLERANCE)


def test_a_prompt_with_a_token_that_is_not_there_ends_alone(tmp_path: Path) -> None:
    model = make("llama")
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(SHRUNK, mean_resizing=False)
    saved = save(resized, resized_configs(model)["shrunk"][1], tmp_path / "a", 0)
    source = pack_source(saved, tmp_path / "a.pkg", SHRUNK)
    harness = Harness(copy.deepcopy(model), rows=1024, num_blocks=50)
    for token, adapter in ((SHRUNK, source), (VOCAB, None), (SHRUNK, None), (SHRUNK - 1, source)):
        harness.submit([token], adapter, max_tokens=1)
    harness.run()
    assert {index: failure.reason for index, failure in harness.failures.items()} == {
        0: "INVALID_FIELD",
        1: "INVALID_FIELD",
    }
    assert all(len(harness.output(index)) == 1 for index in (2, 3))


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)
def test_adapters_of_no_rank_are_served_by_the_kernels_of_a_gpu_too(tmp_path: Path) -> None:
    model = make("llama")
    harness = Harness(copy.deepcopy(model), kernels="triton", rows=256, num_blocks=50)
    for seed, method in enumerate(("ln tuning", "nothing but tokens")):
        saved = save(model, configs(model)[method], tmp_path / method, seed)
        source = pack_source(saved, tmp_path / f"{seed}")
        case = Case([40, 5, 7], source, expected(with_adapter(model, saved), [40, 5, 7], 2))
        harness.submit(case.prompt, source, max_tokens=2, num_logprobs=VOCAB)
        harness.run()
        check(harness, seed, case, TOLERANCE)
