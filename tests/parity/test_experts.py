"""Adapters of experts in one batch with others, each row equal to PEFT with that adapter alone."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from loramux_adapters import read_package
from loramux_adapters.stacks import stacked
from loramux_adapters.tensorfile import tensor_reader
from loramux_server.wire.adapter_source import AdapterSource
from tests.adapters.files import package as packaged
from tests.parity.test_methods import TOLERANCE, cases
from tests.parity.test_peft import Case, check
from tests.support.adapters import expected, pack_source, source_of, with_adapter
from tests.support.engine import Harness
from tests.support.models import CONFIGS, SHAPE, VOCAB, tiny_model

BASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3-moe": CONFIGS["qwen3-moe"],
    "mixtral": lambda: MixtralConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=2),
    "granite-moe": lambda: GraniteMoeConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=1),
}  # fmt: skip
OLD = {
    "qwen3-moe": (
        "mlp",
        {"gate_proj": (32, 24), "up_proj": (32, 24), "down_proj": (24, 32), "gate": (32, 4)},
    ),
    "mixtral": (
        "block_sparse_moe",
        {"w1": (32, 48), "w3": (32, 48), "w2": (48, 32), "gate": (32, 3)},
    ),
}
"""What transformers 4 called the parts of a layer; of an expert, and what chooses -> widths."""


def base(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(BASES[name](), dtype=torch.float32)
    return model.eval()


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False,
        **{"r": 5, "lora_alpha": 9, "target_modules": []} | fields,
    )  # fmt: skip


def configs(router: str = "gate") -> dict[str, PeftConfig]:
    attention, chooses = ["q_proj", "o_proj"], f"{router}.weight"
    both = ["experts.gate_up_proj", "experts.down_proj"]
    return {
        "experts": lora(target_parameters=both),
        "experts, ranks": lora(
            target_parameters=both, target_modules=attention, rank_pattern={"down_proj": 2},
            alpha_pattern={"gate_up_proj": 3}, use_rslora=True,
        ),
        "gate and up": lora(target_parameters=["gate_up_proj"], target_modules=attention),
        "down": lora(target_parameters=["experts.down_proj"], r=1),
        "attention": lora(target_modules=attention),
        "router": lora(target_parameters=[chooses], rank_pattern={chooses: 3}),
        "router and experts": lora(target_parameters=[*both, chooses]),
        "router, whole": lora(target_modules=attention, modules_to_save=[router]),
    }  # fmt: skip


def serve(model: PreTrainedModel, kernels: str, requests: list[Case], *, rows: int = 512) -> None:
    """Demand that each of `requests` has what PEFT makes of it, all in few batches."""
    harness = Harness(
        copy.deepcopy(model), kernels=kernels, rows=rows, num_blocks=200, max_batch_tokens=24,
        max_running=8,
    )  # fmt: skip
    for index, case in enumerate(requests):
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
        if index % 3 == 2:  # the others join while these run
            harness.step()
    harness.run()
    assert not harness.failures
    for request_id, case in enumerate(requests):
        check(harness, request_id, case, TOLERANCE)


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
@pytest.mark.parametrize("name", BASES)
def test_experts_in_one_batch_with_others_equal_peft(
    name: str, kernels: str, tmp_path: Path
) -> None:
    model = base(name)
    serve(
        model,
        kernels,
        cases(model, tmp_path, configs("router" if name == "granite-moe" else "gate")),
    )


def save_old(
    name: str, folder: Path, parts: list[str], dtype: torch.dtype, *, whole: bool = False,
    layers: int = 2, experts: int | None = None,
) -> Path:  # fmt: skip
    """Save an adapter of `parts` of every expert, as PEFT did where these were layers.

    With `whole` it has the other parts, too, which change nothing.
    """
    parent, widths = OLD[name]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for expert in range(experts or (4 if name == "qwen3-moe" else 3)):
            for part, (width_in, width_out) in widths.items():
                at = f"base_model.model.model.layers.{layer}.{parent}"
                key = f"{at}.gate" if part == "gate" else f"{at}.experts.{expert}.{part}"
                for half, shape in (("A", (3, width_in)), ("B", (width_out, 3))):
                    value = torch.randn(shape, generator=generator) * 0.5 / shape[1] ** 0.5
                    if part in parts or whole:
                        is_left_out = half == "B" and part not in parts
                        tensors[f"{key}.lora_{half}.weight"] = value.to(dtype) * (not is_left_out)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 4,
        "target_modules": list(widths) if whole else parts,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OLD)
def test_adapters_of_experts_that_were_layers_equal_peft(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, rng = base(name), random.Random(0)
    found = list(OLD[name][1])
    requests = []
    for number, parts in enumerate((found, found[:2], found[2:3])):
        saved = save_old(name, tmp_path / f"{number}", parts, dtype)
        source = pack_source(saved, tmp_path / f"{number}.pkg")
        # Of the first matrices alone PEFT 0.21 finds none: it takes them for wrapped twice.
        whole = save_old(name, tmp_path / f"{number}, whole", parts, dtype, whole=True)
        wrapped = with_adapter(model, whole)
        for _ in range(2):
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 20))]
            requests.append(Case(prompt, source, expected(wrapped, prompt, 4)))
    serve(model, "cpu", requests)


def in_stacks(source: AdapterSource, output: Path) -> AdapterSource:
    """Write a package to `output` that has in stacks what that of `source` has without."""
    with Path(source.path).open("rb") as file:
        package = read_package(file, Path(source.path).stat().st_size)
        form = stacked(package.tensors)
        assert len(form.tensors) < len(package.file.tensors) == len(package.tensors)
        read = form.reader(tensor_reader(file, package.file.data_start))
        content: dict[str, tuple[str, list[int], bytes]] = {
            name: (tensor.dtype, list(tensor.shape), b"".join(read(tensor)))
            for name, tensor in form.tensors.items()
        }
    output.write_bytes(packaged(content, package.peft_config))
    return source_of(output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stacks_are_what_their_parts_are(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = save_old("qwen3-moe", tmp_path / "saved", list(OLD["qwen3-moe"][1]), dtype)
    plain = pack_source(saved, tmp_path / "plain")
    harness = Harness(base("qwen3-moe"), kernels="cpu", rows=512, num_blocks=200)
    for source in (plain, in_stacks(plain, tmp_path / "stacks"), None):
        harness.submit([5, 9, 40], source, max_tokens=6, num_logprobs=VOCAB)
        harness.run()
    assert not harness.failures
    alone, in_one, without = (
        [(each.token, each.logprobs) for each in harness.tokens[i]] for i in range(3)
    )
    assert alone == in_one != without


def test_a_mixture_with_more_tensors_than_a_package_equals_peft(tmp_path: Path) -> None:
    model = tiny_model("qwen3-moe", num_hidden_layers=6, num_experts=128)
    saved = save_old(
        "qwen3-moe", tmp_path / "saved", list(OLD["qwen3-moe"][1])[:3], torch.float32, layers=6,
        experts=128,
    )  # fmt: skip
    source = pack_source(saved, tmp_path / "package")
    prompt = [5, 9, 40, 7]
    serve(
        model, "cpu", [Case(prompt, source, expected(with_adapter(model, saved), prompt, 4))],
        rows=4096,
    )  # fmt: skip
