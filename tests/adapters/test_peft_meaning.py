"""What a config means for each layer is what PEFT makes of it."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from loramux_adapters import PackageError
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.peft_config import check_config
from tests.adapters.files import CONFIG
from tests.support.adapters import quiet_peft, with_adapter
from tests.support.models import tiny_model


def network(*names: str) -> nn.Module:
    """Return a model with a linear layer of each of `names`, and what they are parts of."""
    root = nn.Module()
    for name in names:
        *outer, last = name.split(".")
        parent = root
        for part in outer:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, nn.Linear(4, 4))
    return root


def of_peft(model: nn.Module, config: peft.LoraConfig) -> dict[str, tuple[int, float]]:
    """Return rank and scale of each layer that PEFT adapts in `model`."""
    with quiet_peft():
        wrapped = peft.get_peft_model(model, config)
    return {
        name: (layer.r["default"], layer.scaling["default"])
        for name, layer in wrapped.base_model.model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def of_ours(config: LoraConfig, names: list[str]) -> dict[str, tuple[int, float]]:
    """Return rank and scale of each of the layers `names` that `config` adapts."""
    return {
        name: (config.rank_of(name), config.scale_of(name))
        for name in names
        if config.targets(name)
    }


def saved(folder: Path) -> LoraConfig:
    return check_config(json.loads((folder / "adapter_config.json").read_text()))


NAMES = [
    *(
        f"model.layers.{layer}.{name}"
        for layer in (0, 1, 10)
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.3.w1")
    ),
    "model.q_proj",
    "layers.1.q_proj",
    "lm_head",
]
Q, V = "model.layers.1.self_attn.q_proj", "model.layers.10.self_attn.v_proj"


FIELDS = [
    pytest.param({"target_modules": ["q_proj"]}, id="a-last-part"),
    pytest.param({"target_modules": ["self_attn.q_proj", "lm_head"]}, id="last-parts"),
    pytest.param({"target_modules": [Q, V, "model.q_proj"]}, id="whole-names"),
    pytest.param({"target_modules": "all-linear"}, id="all-linear"),
    pytest.param(
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["0.mlp.up_proj", Q]},
        id="excluded",
    ),
    pytest.param(
        {"target_modules": "all-linear", "exclude_modules": ["lm_head"]},
        id="all-linear-but-the-head",
    ),
    pytest.param(
        {"target_modules": ["q_proj", "w1"], "layers_to_transform": 1}, id="one-layer"
    ),
    pytest.param(
        {"target_modules": ["q_proj", "w1"], "layers_to_transform": [0, 10]}, id="layers"
    ),
    pytest.param(
        {"target_modules": ["q_proj"], "layers_to_transform": []}, id="an-empty-list-of-layers"
    ),
    pytest.param(
        {"target_modules": ["q_proj", "lm_head", V], "layers_to_transform": [0, 1]},
        id="layers-and-a-whole-name",
    ),
    *(
        pytest.param(
            {"target_modules": ["q_proj", "w1"], "layers_to_transform": layers,
             "layers_pattern": pattern},
            id=f"layers-of-{pattern}",
        )
        for pattern, layers in (
            ("layers", [1]), ("model.layers", [1]), ("experts", [3]), (["h", "layers"], [0]),
            (["layers", "experts"], [0, 3]), (["experts", "layers"], [0, 3]), ("", [1]),
        )
    ),
    pytest.param({"target_modules": ["q_proj"], "r": 3, "lora_alpha": 16}, id="alpha-over-r"),
    pytest.param(
        {"target_modules": ["q_proj"], "r": 3, "lora_alpha": 16, "use_rslora": True},
        id="alpha-over-the-root-of-r",
    ),
    *(
        pytest.param(
            {"target_modules": "all-linear", "r": 4, "lora_alpha": 6, "use_rslora": rslora,
             "rank_pattern": ranks, "alpha_pattern": alphas},
            id=f"patterns-{id}{'-rslora' if rslora else ''}",
        )
        for rslora in (False, True)
        for id, ranks, alphas in (
            ("by-last-part", {"q_proj": 2}, {"v_proj": 3}),
            ("by-whole-name", {Q: 2}, {V: 3}),
            ("together", {"q_proj": 2}, {"q_proj": 3}),
            ("narrow-before-wide", {Q: 2, "q_proj": 3}, {V: 7, "v_proj": 5}),
            ("wide-before-narrow", {"a.q_proj": 9, "q_proj": 3, Q: 2}, {"v_proj": 5, V: 7}),
            ("not-part-of-a-word", {"proj": 2}, {"head": 3}),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS)
def test_a_layer_has_the_rank_and_scale_that_peft_gives_it(fields: dict[str, Any]) -> None:
    expected = of_peft(network(*NAMES), peft.LoraConfig(**fields))
    assert expected
    assert of_ours(check_config({"peft_type": "LORA", **fields}), NAMES) == expected


@pytest.mark.parametrize("fields", FIELDS)
def test_a_saved_config_means_what_it_means_to_peft(fields: dict[str, Any], tmp_path: Path) -> None:
    peft.LoraConfig(**fields).save_pretrained(str(tmp_path))
    again = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert of_ours(saved(tmp_path), NAMES) == of_peft(network(*NAMES), again)


WORDS = st.sampled_from(["model", "layers", "h", "experts", "q", "0", "1", "12"])
MODULES = st.lists(WORDS, min_size=1, max_size=7)


def ends(module: list[str]) -> st.SearchStrategy[str]:
    """Return the names that match `module`."""
    return st.sampled_from([".".join(module[begin:]) for begin in range(len(module))])


def keys(module: list[str]) -> st.SearchStrategy[str]:
    """Return names to match with `module`: parts of its name in a row, and others."""
    places = combinations(range(len(module) + 1), 2)
    pieces = [".".join(module[begin:end]) for begin, end in places]
    return st.sampled_from(pieces) | ends(module) | WORDS


@settings(max_examples=500)
@given(data=st.data(), module=MODULES)
def test_a_layer_is_targeted_if_peft_says_so(data: st.DataObject, module: list[str]) -> None:
    numbers = st.sampled_from([0, 1, *(int(part) for part in module if part.isdigit())])
    fields: dict[str, Any] = {
        "target_modules": data.draw(st.lists(ends(module) | keys(module), min_size=1, max_size=2)),
        "layers_to_transform": data.draw(numbers | st.lists(numbers, max_size=2) | st.none()),
    }
    if fields["layers_to_transform"] is not None:  # PEFT refuses a pattern without layers
        fields["layers_pattern"] = data.draw(st.lists(keys(module), max_size=3) | keys(module))
    if data.draw(st.integers(0, 4)) == 0:
        fields["exclude_modules"] = [data.draw(keys(module))]
    name = ".".join(module)
    expected = bool(check_target_module_exists(peft.LoraConfig(**fields), name))
    event(f"targeted: {expected}")
    assert check_config({"peft_type": "LORA", **fields}).targets(name) == expected


@settings(max_examples=300)
@given(data=st.data(), module=MODULES)
def test_the_pattern_that_peft_takes_counts(data: st.DataObject, module: list[str]) -> None:
    patterns = data.draw(st.dictionaries(keys(module), st.integers(1, 9), max_size=4))
    name = ".".join(module)
    config = check_config(CONFIG | {"r": 10, "rank_pattern": patterns, "alpha_pattern": patterns})
    key = get_pattern_key(list(patterns), name)
    assert config.rank_of(name) == patterns.get(key, 10)
    assert config.scale_of(name) == patterns.get(key, 4) / patterns.get(key, 10)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox", "opt", "qwen3", "gemma3"])
def test_a_default_config_that_peft_saves_is_accepted(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    names = [name for name, _ in model.named_modules()]
    config = peft.LoraConfig()
    expected = of_peft(model, config)
    config.save_pretrained(str(tmp_path))
    assert expected
    assert of_ours(saved(tmp_path), names) == expected


@pytest.mark.parametrize("task", [None, *peft.TaskType])
def test_a_default_config_of_any_task_is_accepted(task: str | None, tmp_path: Path) -> None:
    with quiet_peft():
        peft.LoraConfig(task_type=task, target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    assert saved(tmp_path).rank == 8


def test_a_whole_model_that_peft_saves_is_accepted_with_its_auto_mapping(tmp_path: Path) -> None:
    with quiet_peft():
        model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig())
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["auto_mapping"]["parent_library"].startswith("transformers.")
    assert config["megatron_core"] == "megatron.core"
    assert saved(tmp_path).rank == 8


@pytest.mark.parametrize(
    ("start", "harmless"),
    [
        *((start, True) for start in (True, False, "gaussian", "orthogonal", "mica")),
        *((start, False) for start in ("pissa", "olora")),
    ],
)
def test_a_start_is_refused_if_peft_changes_the_base_for_it(
    start: bool | str, harmless: bool, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    with quiet_peft():
        peft.get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path))
    name = "model.layers.0.self_attn.q_proj"
    loaded = with_adapter(model, tmp_path)
    after = loaded.get_parameter(f"base_model.model.{name}.base_layer.weight")
    # What PEFT runs is its base and the adapter; ours is the base as it was.
    assert after.equal(model.get_parameter(f"{name}.weight")) == harmless
    if harmless:
        assert saved(tmp_path).rank == 2
    else:
        with pytest.raises(PackageError, match="init_lora_weights"):
            saved(tmp_path)
