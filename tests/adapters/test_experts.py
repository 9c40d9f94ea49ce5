"""Low-rank changes of experts: what is read of them, and what fits a base."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loramux_adapters import PackageError
from loramux_adapters.base import read_base
from loramux_adapters.base_names import named_for
from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.experts import ExpertLora, ExpertsShape, Projection
from loramux_adapters.fit import check_fit
from loramux_adapters.kinds import read_contents
from loramux_adapters.lora import LoraModule
from loramux_adapters.tensorfile import TensorInfo
from tests.adapters.files import CONFIG

EXPERTS = "model.layers.0.mlp.experts"
OUTER, INNER = f"base_model.model.{EXPERTS}", f"base_model.model.{EXPERTS}.base_layer"
SHAPE = ExpertsShape(count=3, width=4, inner=6)
BOTH: dict[str, Any] = CONFIG | {"target_parameters": ["experts.gate_up_proj", "down_proj"]}
DOWN: dict[str, Any] = CONFIG | {"target_parameters": ["mlp.experts.down_proj"]}
UNSUPPORTED, INVALID = "UNSUPPORTED_ADAPTER_FEATURE", "INVALID_ADAPTER_CONFIG"
MISMATCH, FILE = "ADAPTER_BASE_MISMATCH", "INVALID_ADAPTER_FILE"


def pair(module: str, a: list[int], b: list[int]) -> dict[str, list[int]]:
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


FIRST, LAST = pair(INNER, [6, 4], [12, 6]), pair(OUTER, [6, 6], [4, 6])


def read(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> Contents:
    tensors = {name: TensorInfo(name, "F32", tuple(shape), 0, 4) for name, shape in shapes.items()}
    return read_contents(config, tensors)[1]


def test_the_first_parameter_is_wrapped_innermost() -> None:
    contents = read(BOTH | {"rank_pattern": {"down_proj": 1}}, FIRST | pair(OUTER, [3, 6], [4, 3]))
    assert [(c.name, c.rank, c.scale, c.num_experts, c.features) for c in contents.experts] == [
        (f"{EXPERTS}.down_proj", 1, 4.0, 3, (6, 4)),
        (f"{EXPERTS}.gate_up_proj", 2, 2.0, 3, (4, 12)),
    ]
    assert not contents.modules and contents.has_more
    check_fit(contents, {}, experts={EXPERTS: SHAPE})
    (change,) = read(DOWN, LAST).experts
    assert change.projection is Projection.DOWN


def test_layers_are_layers_whatever_parameters_are_named() -> None:
    layer = pair("base_model.model.model.layers.0.self_attn.q_proj", [2, 4], [3, 2])
    contents = read(DOWN, LAST | layer)
    assert [module.module for module in contents.modules] == ["model.layers.0.self_attn.q_proj"]
    assert len(contents.experts) == 1


@pytest.mark.parametrize(("config", "shapes", "reason", "message"), [
    (CONFIG | {"r": 6}, LAST, INVALID, "does not target it"),
    (BOTH, LAST, INVALID, "has no factors for gate_up_proj"),
    (BOTH, FIRST, INVALID, "has no factors for down_proj"),
    (DOWN, FIRST, INVALID, "has factors for 2 parameters"),
    (DOWN, pair(OUTER, [5, 6], [4, 5]), INVALID, "not a multiple of the rank 2"),
    (DOWN, pair(OUTER, [0, 6], [4, 0]), INVALID, "lora_A has 0 rows"),
    (DOWN, pair(OUTER, [6, 6], [4, 4]), FILE, "lora_A has rank 6, lora_B has rank 4"),
    (DOWN, pair(OUTER, [3, 2, 6], [4, 6]), FILE, "is not 2-D"),
    (DOWN, {f"{OUTER}.lora_A.weight": [6, 6]}, FILE, "has lora_A but no lora_B"),
    (DOWN, LAST | {f"{OUTER}.lora_B.bias": [4]}, UNSUPPORTED, "lora_B.bias is not supported; for"),
    (DOWN | {"lora_alpha": 4096}, LAST, INVALID, "scale 2048"),
    (DOWN | {"use_dora": True}, LAST, UNSUPPORTED, "'target_parameters' = 'mlp.experts.down_proj'"),
    (DOWN | {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, LAST, UNSUPPORTED,
     "target_parameters is not supported with alora_in"),
    (CONFIG | {"target_parameters": ["q.weight"]}, LAST, UNSUPPORTED, "of experts: "),
    (CONFIG | {"target_parameters": ["experts.*"]}, LAST, UNSUPPORTED, "patterns are not supp"),
    (CONFIG | {"target_parameters": "down_proj"}, LAST, UNSUPPORTED, "a regular expression"),
])  # fmt: skip
def test_what_config_and_tensors_do_not_agree_on_is_said(
    config: dict[str, Any], shapes: dict[str, list[int]], reason: str, message: str
) -> None:
    with pytest.raises(PackageError, match=message.replace("*", r"\*")) as caught:
        read(config, shapes)
    assert caught.value.reason == reason


def change(projection: Projection, width_in: int, width_out: int, **more: Any) -> ExpertLora:
    count = more.pop("num_experts", 3)
    a, b = (
        TensorInfo("t", "F32", each, 0, 0)
        for each in ((2 * count, width_in), (width_out, 2 * count))
    )
    return ExpertLora(EXPERTS, projection, 1.0, a, b, count, **more)  # fmt: skip


@pytest.mark.parametrize(("found", "shape", "message"), [
    (change(Projection.GATE_UP, 4, 12), None, "has no such adaptable"),
    (change(Projection.GATE_UP, 4, 12, num_experts=2), SHAPE, "changes 2 experts, .* has 3"),
    (change(Projection.GATE_UP, 12, 4), SHAPE, "features, but the base model maps 4 to 12"),
    (change(Projection.UP, 4, 6), SHAPE, None),
    (change(Projection.UP, 4, 6), ExpertsShape(3, 4, 6, has_halves=False), "has no such adaptable"),
    (change(Projection.UP, 4, 6), ExpertsShape(3, 4, 6, is_gated=False), None),
    (change(Projection.GATE, 4, 6), ExpertsShape(3, 4, 6, is_gated=False), "has no such adaptable"),
    (change(Projection.DOWN, 6, 4, num_experts=1, number=2), SHAPE, None),
    (change(Projection.DOWN, 6, 4, num_experts=1, number=3), SHAPE, "has experts from 0 to 2"),
])  # fmt: skip
def test_what_does_not_fit_is_said(
    found: ExpertLora, shape: ExpertsShape | None, message: str | None
) -> None:
    contents, there = Contents(experts=[found]), {EXPERTS: shape} if shape else {}
    if message is None:
        check_fit(contents, {}, experts=there)
        return
    with pytest.raises(PackageError, match=message) as caught:
        check_fit(contents, {}, experts=there)
    assert caught.value.reason == MISMATCH


def module(name: str) -> LoraModule:
    a, b = (TensorInfo("t", "F32", shape, 0, 0) for shape in ((2, 4), (6, 2)))
    return LoraModule(name, 1.0, a, b)


def test_changes_of_layers_become_those_of_experts_where_these_are_none() -> None:
    old = "model.layers.0.block_sparse_moe.experts"
    names = [
        f"{EXPERTS}.7.up_proj", f"{old}.2.w1", f"{old}.2.w2", f"{old}.2.w4",
        f"{EXPERTS}.01.up_proj", "model.layers.1.mlp.experts.0.up_proj", f"{EXPERTS}.8.up_proj",
        "model.layers.0.block_sparse_moe.gate", "model.layers.1.mlp.gate",
    ]  # fmt: skip
    shape = replace(SHAPE, router="model.layers.0.mlp.gate")
    found = named_for(Contents([*map(module, names)]), [names[6]], {EXPERTS: shape})
    assert [each.name for each in found.experts] == [
        f"{EXPERTS}.7.up_proj", f"{EXPERTS}.2.gate_proj", f"{EXPERTS}.2.down_proj",
    ]  # fmt: skip
    assert [each.name for each in found.modules] == [*names[3:7], names[8]]
    assert [each.name for each in found.routers] == ["model.layers.0.mlp.gate"]
    check = Contents(routers=found.routers)
    check_fit(check, {}, experts={EXPERTS: replace(shape, count=6)})
    with pytest.raises(PackageError, match="maps 4 to 6 features, but the base model maps 4 to 3"):
        check_fit(check, {}, experts={EXPERTS: shape})


@pytest.mark.parametrize("router", ["model.layers.0.mlp.gate", "model.layers.0.mlp.router"])
def test_what_has_its_name_stays_as_it_is(router: str) -> None:
    old = "model.layers.0.block_sparse_moe"
    there = {EXPERTS: replace(SHAPE, router=router)}
    contents = Contents([module(f"{old}.gate"), module(f"{old}.experts.1.w1")])
    found = named_for(contents, [], there)
    assert [each.name for each in found.low_rank] == [router, f"{EXPERTS}.1.gate_proj"]
    assert named_for(found, [], there) == found


@pytest.mark.parametrize(("old", "new"), [
    ("block_sparse_moe.gate", "mlp.gate"),
    ("block_sparse_moe.experts.1.w3", "mlp.experts.1.up_proj"),
])  # fmt: skip
def test_what_is_changed_under_two_names_is_refused(old: str, new: str) -> None:
    both = Contents([module(f"model.layers.0.{name}") for name in (old, new)])
    there = {EXPERTS: replace(SHAPE, router="model.layers.0.mlp.gate")}
    with pytest.raises(PackageError, match=f"{new}: the adapter has two updates of it") as caught:
        named_for(both, [], there)
    assert caught.value.reason == INVALID


FUSED = {f"{EXPERTS}.gate_up_proj": (3, 12, 4), f"{EXPERTS}.down_proj": (3, 4, 6)}
TURNED = {f"{EXPERTS}.gate_up_proj": (3, 4, 12), f"{EXPERTS}.down_proj": (3, 6, 4)}
ALONE = {f"{EXPERTS}.{n}.down_proj.weight": (4, 6) for n in range(3)}
# In blocks of six numbers.
MXFP4 = {
    f"{EXPERTS}.gate_up_proj_blocks": (3, 12, 1, 2),
    f"{EXPERTS}.down_proj_blocks": (3, 4, 1, 3),
}
MIXTRAL = {f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight": (4, 6) for n in range(3)}


@pytest.mark.parametrize("weights", [FUSED, TURNED, ALONE, MIXTRAL, MXFP4, {}], ids=str)
def test_a_folder_has_experts_in_several_ways(
    weights: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    tensors = {name: torch.zeros(shape) for name, shape in weights.items()}
    save_file(tensors or {"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = read_base(tmp_path).experts(read(BOTH, FIRST | LAST))
    assert found == ({EXPERTS: SHAPE} if weights else {})


@pytest.mark.parametrize(("name", "saved"), [
    ("mlp.gate", "mlp.gate"),
    ("mlp.gate", "block_sparse_moe.gate"),
    ("mlp.router", "block_sparse_moe.gate"),
    ("block_sparse_moe.router", "block_sparse_moe.router.layer"),
])  # fmt: skip
def test_a_folder_has_what_chooses_under_several_names(
    name: str, saved: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    weight = torch.zeros(3, 4)
    save_file({f"model.layers.0.{saved}.weight": weight}, tmp_path / "model.safetensors")
    name, base = f"model.layers.0.{name}", read_base(tmp_path)
    assert base.features(Contents([module(name)])) == {name: (4, 3)}
    whole = Edit(name, EditKind.PARAMETER, TensorInfo("t", "F32", (3, 4), 0, 48), "weight")
    assert base.parameters(Contents(edits=[whole])) == {f"{name}.weight": (3, 4)}


def test_a_folder_of_granite_has_experts_as_other_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "granitemoe"}')
    parent = "model.layers.0.block_sparse_moe"
    tensors = {
        f"{parent}.input_linear.weight": torch.zeros(3, 12, 4),
        f"{parent}.output_linear.weight": torch.zeros(3, 4, 6),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = CONFIG | {"target_parameters": ["experts.down_proj"]}
    contents = read(config, pair(f"base_model.model.{parent}.experts", [6, 6], [4, 6]))
    assert read_base(tmp_path).experts(contents) == {f"{parent}.experts": SHAPE}
