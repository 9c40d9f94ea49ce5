"""What stands behind the layers of a base: what of an adapter is done there, and if it fits."""

from typing import Any

import pytest

from loramux_adapters import PackageError
from loramux_adapters.base_names import named_for
from loramux_adapters.contents import Contents
from loramux_adapters.head import FEATURES, LABELS, HeadShape, Task
from loramux_adapters.kinds import read_contents
from loramux_adapters.post_layers import check_head
from tests.adapters.files import CONFIG
from tests.adapters.test_contents import IA3, LORA, infos

P = "base_model.model."
MISMATCH, UNSUPPORTED = "ADAPTER_BASE_MISMATCH", "UNSUPPORTED_ADAPTER_FEATURE"
POOLED = {"bert.pooler.dense.weight": (4, 4), "bert.pooler.dense.bias": (4,)}
LABELLED = {"classifier.weight": (LABELS, 4), "classifier.bias": (LABELS,)}
HEADS = {
    Task.SEQUENCE: HeadShape("BertFor", {**POOLED, **LABELLED}, tuple(POOLED)),
    Task.TOKENS: HeadShape("PreFor", {"pre.weight": (4, 4), "norm.weight": (4,), **LABELLED}, ()),
    Task.SPANS: HeadShape("Model", fault="transformers has no class for it"),
    FEATURES: HeadShape("Model", {"pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)}),
}
TEXTS: dict[str, Any] = CONFIG | {
    "task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score", "pooler", "norm"],
    "target_modules": ["q_proj", "v_proj", "dense"],
}  # fmt: skip
TOKENS = TEXTS | {"task_type": "TOKEN_CLS", "modules_to_save": ["classifier", "pre", "norm"]}
OWN = {f"{P}classifier.weight": [3, 4], f"{P}classifier.bias": [3]}
PRE = {f"{P}pre.weight": [4, 4], f"{P}norm.weight": [4]}
POOLER = f"{P}bert.pooler.dense"
CHANGED = {f"{POOLER}.lora_A.weight": [2, 4], f"{POOLER}.lora_B.weight": [4, 2]}


def contents_of(config: dict[str, Any], shapes: dict[str, list[int]]) -> Contents:
    _, contents = read_contents(config, infos(LORA | shapes))
    return named_for(contents, ["encoder.layer.0.query"], heads=HEADS)


@pytest.mark.parametrize(
    ("config", "shapes", "post_layers"),
    [
        (TEXTS, OWN, []),
        (TEXTS, OWN | CHANGED, ["bert.pooler.dense"]),
        (TEXTS, OWN | {f"{POOLER}.weight": [4, 4], f"{POOLER}.bias": [4]}, ["bert.pooler.dense"]),
        (TEXTS | {"bias": "all"}, OWN | {f"{POOLER}.bias": [4]}, ["bert.pooler.dense"]),
        (TOKENS, OWN | PRE, ["norm", "pre"]),
        (CONFIG | {"task_type": FEATURES, "target_modules": ["q_proj", "dense"]},
         {f"{P}pooler.dense.lora_A.weight": [2, 4], f"{P}pooler.dense.lora_B.weight": [4, 2]},
         ["pooler.dense"]),
    ],
)  # fmt: skip
def test_what_is_behind_the_layers_is_no_change_of_them(
    config: dict[str, Any], shapes: dict[str, list[int]], post_layers: list[str]
) -> None:
    contents = contents_of(config, shapes)
    check_head(contents, HEADS)
    assert (contents.post_layers.changed_modules if contents.post_layers else []) == post_layers
    assert [each.module for each in contents.modules] == ["model.layers.0.self_attn.q_proj"]
    assert not contents.edits
    assert set(post_layers) <= set(contents.changed_modules)


@pytest.mark.parametrize(
    ("config", "shapes", "reason", "message"),
    [
        (TEXTS, {f"{P}score.weight": [3, 4]}, MISMATCH,
         "score.weight: BertFor has no parameter score.weight after the layers of the base "
         "model; it has bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias"),
        (TEXTS, {f"{P}classifier.weight": [3, 8], f"{P}classifier.bias": [3]}, MISMATCH,
         "classifier.weight: shape [3, 8] is not [3, 4], the shape of classifier.weight in BertFor "
         "with 3 outputs"),
        (TEXTS, {f"{P}classifier.weight": [3, 4]}, MISMATCH,
         "classifier.bias is missing: the adapter has the weight, but BertFor has a bias as well"),
        (TOKENS, OWN | {f"{P}norm.weight": [4]}, MISMATCH,
         "tensor base_model.model.pre.weight is missing: PreFor has it after the layers of the "
         "base model, which was saved without it"),
        (TOKENS | {"target_modules": ["q_proj", "pre"], "modules_to_save": ["classifier", "norm"]},
         OWN | {f"{P}norm.weight": [4], f"{P}pre.lora_A.weight": [2, 4],
                f"{P}pre.lora_B.weight": [4, 2]}, MISMATCH, "modules_to_save has 'pre'"),
        (TEXTS, OWN | {f"{POOLER}.lora_A.weight": [2, 8], f"{POOLER}.lora_B.weight": [4, 2]},
         MISMATCH, "bert.pooler.dense: the adapter maps 8 to 4 features, but BertFor maps 4 to 4"),
        (TEXTS, OWN | {f"{POOLER}.weight": [5, 4], f"{POOLER}.bias": [4]}, MISMATCH,
         "bert.pooler.dense.weight: shape [5, 4] is not [4, 4]"),
        (TEXTS | {"use_dora": True}, OWN | CHANGED | {
            f"{POOLER}.lora_magnitude_vector": [5],
            f"{P}model.layers.0.self_attn.q_proj.lora_magnitude_vector": [3],
         }, MISMATCH, "the magnitude has 5 values, but the layer of BertFor has 4 outputs"),
        (TOKENS | {"target_modules": ["q_proj", "norm"], "modules_to_save": ["classifier", "pre"]},
         OWN | {f"{P}pre.weight": [4, 4], f"{P}norm.lora_A.weight": [2, 4],
                f"{P}norm.lora_B.weight": [4, 2]},
         UNSUPPORTED, "norm of PreFor is not a linear layer"),
        (TOKENS | {"target_modules": ["q_proj", "pre"], "modules_to_save": ["classifier"],
                   "lora_bias": True}, OWN | {
            f"{P}model.layers.0.self_attn.q_proj.lora_B.bias": [3], f"{P}pre.lora_A.weight": [2, 4],
            f"{P}pre.lora_B.weight": [4, 2], f"{P}pre.lora_B.bias": [4],
         }, UNSUPPORTED, "needs a bias, but module pre of PreFor has none"),
        (TEXTS | {"task_type": "QUESTION_ANS"},
         {f"{P}classifier.weight": [2, 4], f"{P}classifier.bias": [2]}, MISMATCH,
         "'QUESTION_ANS', but the base model does not support heads for it: transformers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_behind_the_layers_is_named(
    config: dict[str, Any], shapes: dict[str, list[int]], reason: str, message: str
) -> None:
    with pytest.raises(PackageError) as caught:
        check_head(contents_of(config, shapes), HEADS)
    assert message in str(caught.value)
    assert caught.value.reason == reason


def test_factors_are_not_served_behind_the_layers() -> None:
    config = IA3 | {
        "task_type": "SEQ_CLS", "modules_to_save": ["classifier"], "feedforward_modules": [],
        "target_modules": ["q_proj", "dense"],
    }  # fmt: skip
    shapes = {f"{P}model.layers.0.self_attn.q_proj.ia3_l": [3, 1], f"{POOLER}.ia3_l": [4, 1]}
    _, contents = read_contents(config, infos(shapes | OWN))
    with pytest.raises(PackageError, match=r"the output factor of module bert\.pooler\.dense, wh"):
        check_head(named_for(contents, [], heads=HEADS), HEADS)


def test_the_base_says_which_layer_is_the_last_one() -> None:
    shape = HeadShape(
        "For",
        {"classifier.a.weight": (LABELS, 4), "classifier.out.weight": (4, 4)},
        ("classifier.out.weight",),
    )
    shapes = {f"{P}classifier.a.weight": [4, 4], f"{P}classifier.out.weight": [4, 4]}
    _, contents = read_contents(TEXTS, infos(LORA | shapes))
    assert contents.head is not None
    assert contents.head.module == "classifier.out"
    found = named_for(contents, [], heads={Task.SEQUENCE: shape})
    assert found.head is not None
    assert found.head.module == "classifier.a"
    check_head(found, {Task.SEQUENCE: shape})
