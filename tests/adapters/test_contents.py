"""What an adapter does beside low-rank changes: config and tensors held against each other."""

from collections.abc import Mapping
from typing import Any

import pytest

from loramux_adapters import PackageError, check_fit
from loramux_adapters.contents import EditKind
from loramux_adapters.kinds import read_contents
from loramux_adapters.tensorfile import TensorInfo
from tests.adapters.files import CONFIG, MODULE, TENSORS, A, B

INVALID = "INVALID_ADAPTER_CONFIG"
FILE = "INVALID_ADAPTER_FILE"
ADDED = B.replace("weight", "bias")
MAGNITUDE = f"base_model.model.{MODULE}.lora_magnitude_vector"
BIAS = f"base_model.model.{MODULE}.base_layer.bias"
FACTOR = f"base_model.model.{MODULE}.ia3_l"
IA3: dict[str, Any] = {
    "peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": [],
}  # fmt: skip


def infos(shapes: Mapping[str, list[int]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", tuple(shape), 0, 4) for name, shape in shapes.items()}


LORA = {name: shape for name, (_, shape, _) in TENSORS.items()}


def test_each_tensor_has_its_meaning() -> None:
    config = CONFIG | {"use_dora": True, "bias": "all"}
    _, contents = read_contents(config, infos(LORA | {MAGNITUDE: [3], BIAS: [3]}))
    assert [module.module for module in contents.modules] == [MODULE]
    assert [edit.kind for edit in contents.edits] == [EditKind.MAGNITUDE, EditKind.BIAS]
    _, contents = read_contents(CONFIG | {"lora_bias": True}, infos(LORA | {ADDED: [3]}))
    assert [edit.kind for edit in contents.edits] == [EditKind.ADDED_BIAS]
    _, contents = read_contents(IA3, infos({FACTOR: [3, 1]}))
    assert [edit.kind for edit in contents.edits] == [EditKind.OUTPUT_FACTOR]
    _, contents = read_contents(IA3 | {"feedforward_modules": ["proj"]}, infos({FACTOR: [1, 4]}))
    assert [edit.kind for edit in contents.edits] == [EditKind.INPUT_FACTOR]


@pytest.mark.parametrize(
    ("config", "shapes", "reason", "message"),
    [
        (CONFIG, LORA | {MAGNITUDE: [3]}, INVALID, "use_dora of adapter_config.json is off"),
        (CONFIG, LORA | {ADDED: [3]}, INVALID, "lora_bias of adapter_config.json is off"),
        (CONFIG, LORA | {BIAS: [3]}, INVALID, "bias of adapter_config.json is off"),
        (CONFIG | {"use_dora": True}, LORA, INVALID, "has no tensor for use_dora"),
        (CONFIG | {"lora_bias": True}, LORA, INVALID, "has no tensor for lora_bias"),
        (CONFIG | {"use_dora": True}, {MAGNITUDE: [3]}, INVALID, "there is no lora_A"),
        (CONFIG | {"use_dora": True}, LORA | {MAGNITUDE: [3, 1]}, FILE, "is not 1-D"),
        (
            CONFIG | {"bias": "all"},
            LORA | {BIAS: [3], BIAS.replace(".base_layer", ""): [3]},
            FILE,
            "are duplicates",
        ),
        (IA3, {FACTOR: [1, 4]}, FILE, "shape [1, 4] is not [out_features, 1]"),
        (IA3, {FACTOR: [3]}, FILE, "is not [out_features, 1]"),
        (IA3 | {"feedforward_modules": ["q_proj"]}, {FACTOR: [3, 1]}, FILE, "[1, in_features]"),
        (IA3 | {"target_modules": ["v_proj"]}, {FACTOR: [3, 1]}, INVALID, "does not target it"),
        (IA3 | {"exclude_modules": ["q_proj"]}, {FACTOR: [3, 1]}, INVALID, "does not target it"),
        (IA3 | {"target_modules": []}, {FACTOR: [3, 1]}, INVALID, "target_modules is empty"),
        (
            IA3 | {"modules_to_save": ["score"], "task_type": "SEQ_CLS"},
            {FACTOR: [3, 1]},
            "UNSUPPORTED_ADAPTER_FEATURE",
            "'task_type'",
        ),
        (IA3, {A: [2, 4]}, "UNSUPPORTED_ADAPTER_FEATURE", "expected '.ia3_l', or"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    config: dict[str, Any], shapes: dict[str, list[int]], reason: str, message: str
) -> None:
    with pytest.raises(PackageError) as caught:
        read_contents(config, infos(shapes))
    assert message in str(caught.value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        (CONFIG | {"use_dora": True}, LORA | {MAGNITUDE: [4]}, "4 values, but the layer of the"),
        (IA3, {FACTOR: [4, 1]}, "the output factor has 4 values"),
        (IA3 | {"feedforward_modules": ["q_proj"]}, {FACTOR: [1, 3]}, "4 inputs"),
    ],
)
def test_a_vector_of_another_width_does_not_fit(
    config: dict[str, Any], shapes: dict[str, list[int]], message: str
) -> None:
    _, contents = read_contents(config, infos(shapes))
    with pytest.raises(PackageError, match=message):
        check_fit(contents, {MODULE: (4, 3)})
