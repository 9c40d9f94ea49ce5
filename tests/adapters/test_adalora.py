"""AdaLoRA folders are packed as LoRA that adds the very same."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loramux_adapters import PackageError, open_package, unpack
from loramux_adapters.package import read_package
from loramux_adapters.weights.adalora import pack_adalora
from tests.support.adapters import quiet_peft, with_adapter
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

PROMPT = torch.tensor([[1, 5, 9, 23, 42, 7]])


def save_adalora(folder: Path, *, masked: bool = True, architecture: str = "llama") -> Path:
    """Save a random AdaLoRA whose layers have lost some ranks, and one of them all, if `masked`."""
    torch.manual_seed(3)
    model = tiny_model(architecture)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=3, total_step=9, lora_alpha=12,
        target_modules="all-linear",
    )  # fmt: skip
    with quiet_peft():
        adapted = get_peft_model(copy.deepcopy(model), config)
    pattern: dict[str, list[bool]] = {}
    with torch.no_grad():
        for name, weight in adapted.base_model.model.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.3)
            if masked and ".lora_E" in name:
                kept = (torch.rand(6) < 0.6).tolist() if pattern else [False] * 6
                weight[~torch.tensor(kept)] = 0.0
                pattern[name] = kept
    adapted.peft_config["default"].rank_pattern = pattern or None
    with quiet_peft():  # of a layer without ranks PEFT warns, and saves it
        adapted.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("masked", [True, False])
def test_the_logits_are_those_of_peft(tmp_path: Path, masked: bool, architecture: str) -> None:
    source = save_adalora(tmp_path / "ada", masked=masked, architecture=architecture)
    with (tmp_path / "package").open("w+b") as file:
        pack_adalora(source, file)
        package = read_package(file, file.tell())
        unpack(file, package, tmp_path / "lora")
    ranks = {module.rank for module in package.modules}
    assert (max(ranks) <= 6 and len(ranks) > 1) if masked else ranks == {6}
    model = tiny_model(architecture)
    wanted, found, plain = (
        with_adapter(model, folder)(input_ids=PROMPT).logits
        for folder in (source, tmp_path / "lora", None)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert (plain - wanted).abs().max() > 0.1


def test_pack_folds_it(loramux: Loramux, tmp_path: Path) -> None:
    save_adalora(tmp_path / "ada")
    first, second = (loramux("pack", "ada", "-o", name) for name in ("one", "two"))
    assert first.code == second.code == 0
    assert Path("one").read_bytes() == Path("two").read_bytes()
    with open_package(Path("one")) as (_, package):
        assert package.peft_config["peft_type"] == "LORA"
        assert not {"init_r", "target_r", "total_step"} & package.peft_config.keys()


def refusal(source: Path) -> str:
    with pytest.raises(PackageError) as caught, (source / "out").open("w+b") as file:
        pack_adalora(source, file)
    return str(caught.value)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    source = save_adalora(tmp_path / "ada", masked=False)
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if name.endswith("lora_E"))
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    module = name.removeprefix("base_model.model.").removesuffix(".lora_E")
    assert refusal(source) == f"module {module} has no lora_E"


def test_ranks_that_differ_are_named(tmp_path: Path) -> None:
    source = save_adalora(tmp_path / "ada", masked=False)
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if name.endswith("lora_E"))
    save_file(tensors | {name: tensors[name][:2].clone()}, path)
    assert "(2, 1) of lora_A, lora_B and lora_E do not have the same rank" in refusal(source)


def test_an_adapter_of_masked_ranks_alone_is_refused(tmp_path: Path) -> None:
    source = save_adalora(tmp_path / "ada", masked=False)
    path = source / "adapter_model.safetensors"
    zeros = {
        name: torch.zeros_like(value) if name.endswith("lora_E") else value
        for name, value in load_file(path).items()
    }
    save_file(zeros, path)
    assert refusal(source) == f"{source}: every rank is masked; the adapter changes nothing"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("init_r", 0, "init_r is 0; expected an integer from 1 to 512"),
        ("bias", "all", "'bias' = 'all' is not supported"),
    ],
)
def test_a_field_that_is_not_served_is_named(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    source = save_adalora(tmp_path / "ada", masked=False)
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert message in refusal(source)
