"""Adapters that change what sees images: what is honoured, what is shared, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from loramux_adapters import PackageError
from loramux_server.lora.mix import mixed
from loramux_server.models.loading import load_base_model
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.adapter_source import AdapterSource, Combination
from tests.support.adapters import pack_source, quiet_peft, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.image_prompts import Case, Prompt, photo, prompt_logprobs_of, show, vision_case

OLD_NAMES = {
    "qwen2.5-vl": [{"model.visual.": "visual.", "model.language_model.": "model."}],
    "llava": [
        {"model.vision_tower.": "model.vision_tower.vision_model."},
        {
            "model.vision_tower.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "model.language_model.": "language_model.model.",
        },
    ],
}
"""Beginning of a name -> what stood there in each older version of transformers."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return vision_case("qwen2.5-vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return vision_case("llava", tmp_path_factory.mktemp("llava"))


def saved(case: Case, folder: Path, seed: int = 1, **config: Any) -> Path:
    """Return the folder of an adapter of all linear layers, if `config` does not say else."""
    config = {"r": 4, "target_modules": "all-linear", **config}
    return save_adapter(copy.deepcopy(case.model), folder, seed=seed, **config)


def source_of(folder: Path) -> AdapterSource:
    return pack_source(folder, folder.with_suffix(".pkg"))


def prompt_of(case: Case, seed: int = 1) -> Prompt:
    return Prompt.of([[5, 6, 7], case.processor.prepare(photo(seed)), [8, 9, 10]])


def check(case: Case, source: AdapterSource | None, alone: torch.nn.Module) -> None:
    """Hold what is made of an image with an adapter against PEFT."""
    harness, prompt = case.harness(), prompt_of(case)
    request_id = show(harness, prompt, source)
    harness.run()
    wanted = case.expected(alone, prompt)
    ours = prompt_logprobs_of(harness, request_id)[: len(wanted)]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


def without_vision(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of what PEFT loaded without its changes of what sees images."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if ".lora_B." in name and "language_model" not in name:
                weight.zero_()
    return plain


def test_ranks_and_scales_are_those_of_each_layer(qwen: Case, tmp_path: Path) -> None:
    folder = saved(
        qwen, tmp_path / "a", use_rslora=True, rank_pattern={"qkv": 7, "mlp.2": 3},
        alpha_pattern={"attn.proj": 20},
    )  # fmt: skip
    model = with_adapter(qwen.model, folder)
    check(qwen, source_of(folder), model)
    prompt = prompt_of(qwen)
    difference = qwen.expected(model, prompt) - qwen.expected(without_vision(model), prompt)
    assert difference.abs().max() > 0.01


def test_what_reads_text_may_be_left_as_it_is(llava: Case, tmp_path: Path) -> None:
    towers = [name for name, _ in llava.model.named_modules() if name.endswith((".fc1", "_1"))]
    folder = saved(llava, tmp_path / "a", target_modules=towers)
    check(llava, source_of(folder), with_adapter(llava.model, folder))


@pytest.mark.parametrize(
    ("kind", "old"), [(kind, old) for kind, all_old in OLD_NAMES.items() for old in all_old]
)
def test_names_are_those_of_any_version(
    kind: str, old: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case: Case = request.getfixturevalue(kind.partition("2")[0])
    folder = saved(case, tmp_path / "a")
    model = with_adapter(case.model, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = dict(tensors)
    for new, before in old.items():
        begin = f"base_model.model.{new}"
        renamed = {
            name.replace(begin, f"base_model.model.{before}"): tensor
            for name, tensor in renamed.items()
        }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = "all-linear"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    check(case, source_of(folder), model)


def trained_whole(model: PreTrainedModel, folder: Path, **config: Any) -> Path:
    """Save an adapter of which all that is trained is random."""
    torch.manual_seed(3)
    with quiet_peft():
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_" in name or "modules_to_save" in name or name.endswith(".bias"):
                weight.add_(torch.randn_like(weight) * 0.1)
    with quiet_peft():
        wrapped.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector"]},
        {"target_modules": ["q_proj", "fc1"], "bias": "all"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj", "fc1"], "use_dora": True, "bias": "lora_only"},
    ],
    ids=["modules_to_save", "bias", "DoRA", "DoRA and bias"],
)
def test_what_is_done_beside_low_rank_changes_is_done_there_too(
    llava: Case, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = trained_whole(llava.model, tmp_path / "a", **config)
    check(llava, source_of(folder), with_adapter(llava.model, folder))
    check(llava, None, llava.model)


@pytest.mark.parametrize("combination", list(Combination))
def test_a_mix_sees_as_its_parts_do_together(
    qwen: Case, combination: Combination, tmp_path: Path
) -> None:
    folders = [saved(qwen, tmp_path / name, seed) for seed, name in enumerate("ab")]
    weights = [0.7, -0.4]
    with quiet_peft():
        model = PeftModel.from_pretrained(copy.deepcopy(qwen.model), str(folders[0]), "a").eval()
        model.load_adapter(str(folders[1]), "b")
        model.base_model.add_weighted_adapter(
            ["a", "b"], weights, "mix", combination_type=str(combination)
        )
    model.set_adapter("mix")
    check(qwen, mixed([source_of(folder) for folder in folders], weights, combination), model)


def test_a_scaled_adapter_sees_as_much_more(qwen: Case, tmp_path: Path) -> None:
    folder = saved(qwen, tmp_path / "a", lora_alpha=4)
    source = source_of(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 6}))
    check(qwen, mixed([source], [1.5], Combination.CAT), with_adapter(qwen.model, folder))


def test_who_changes_nothing_there_sees_what_the_base_does(qwen: Case, tmp_path: Path) -> None:
    text = [n for n, _ in qwen.model.named_modules() if "language_model" in n and "q_proj" in n]
    sources = [
        None, source_of(saved(qwen, tmp_path / "text", target_modules=text)),
        source_of(saved(qwen, tmp_path / "one")), source_of(saved(qwen, tmp_path / "two", 2)),
    ]  # fmt: skip
    harness, prompt = qwen.harness(), prompt_of(qwen)
    for source in sources * 2:
        show(harness, prompt, source)
    harness.run()
    assert not harness.failures
    assert len(harness.engine._image_encoder._kept) == 3
    plain = {digest for _, _, digest in harness.engine._image_encoder._kept}
    assert plain == {"", *(source.digest for source in sources[2:] if source)}


def test_a_damaged_file_ends_its_request_alone(qwen: Case, tmp_path: Path) -> None:
    source = source_of(saved(qwen, tmp_path / "a"))
    path = Path(source.path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    harness, prompt = qwen.harness(), prompt_of(qwen)
    damaged, base = show(harness, prompt, source), show(harness, prompt)
    harness.run()
    assert harness.failures[damaged].reason == "ADAPTER_DAMAGED"
    assert len(harness.output(base)) == 5


def refused(case: Case, folder: Path, info: Any = None) -> tuple[str, str]:
    """Return why the adapter in `folder` cannot be registered."""
    source = source_of(folder)
    base = ServedBase.of(info or case.harness().info, max_host_bytes=1 << 30)
    with Path(source.path).open("rb") as file, pytest.raises(PackageError) as caught:
        check_package(file, Path(source.path).stat().st_size, base)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        (
            "qwen",
            {"lora_bias": True},
            "the added bias of vision module model.visual.blocks.0.attn.q",
        ),
        ("qwen", {"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens does not support"),
        ("llava", {"target_modules": ["position_embedding"]}, "but not a linear layer"),
    ],
    ids=["lora_bias", "aLoRA", "embedding"],
)
def test_what_is_not_done_there_is_refused_by_name(
    kind: str,
    config: dict[str, Any],
    why: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    case: Case = request.getfixturevalue(kind)
    folder = trained_whole(case.model, tmp_path / "a", **{"target_modules": ["qkv"], **config})
    reason, message = refused(case, folder)
    assert reason == "UNSUPPORTED_ADAPTER_FEATURE"
    assert why in message


def test_a_base_without_vision_says_why_it_refuses(qwen: Case, tmp_path: Path) -> None:
    folder = saved(qwen, tmp_path / "a")
    base = load_base_model(str(qwen.folder), device="cpu", images_off_reason="nobody shows any")
    harness = Harness(base)
    wanted = (
        "ADAPTER_BASE_MISMATCH",
        "module model.visual.blocks.0.attn.proj is a vision module, but the base model, "
        "Qwen2_5_VLForConditionalGeneration, does not support images: nobody shows any",
    )
    assert refused(qwen, folder, harness.info) == wanted
    # It may have been registered when the base saw them.
    request_id = harness.submit([5, 6, 7], source_of(folder))
    harness.run()
    assert harness.failures[request_id].reason == wanted[0]
    assert wanted[1] in harness.failures[request_id].message


def test_ranks_of_vision_modules_take_no_rows(qwen: Case, tmp_path: Path) -> None:
    folder = saved(qwen, tmp_path / "a", rank_pattern={"qkv": 40})
    source = source_of(folder)
    base = ServedBase.of(qwen.harness().info, max_host_bytes=1 << 30)
    with Path(source.path).open("rb") as file:
        package = check_package(file, Path(source.path).stat().st_size, base)
    assert (package.rank, source.rank) == (4, 40)
    assert "qkv" in package.target_modules
