"""Modules that were trained whole, embeddings, rows of tokens: what is read, and what refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file

from loramux_adapters import PackageError, check_fit, open_package
from loramux_adapters.base import read_base
from loramux_adapters.contents import EditKind
from loramux_adapters.kinds import read_contents
from loramux_adapters.plain import require_low_rank
from loramux_adapters.unpack import unpack
from loramux_adapters.weights.lint import lint
from loramux_adapters.weights.verify import verify
from tests.adapters.files import CONFIG
from tests.adapters.test_contents import FILE, IA3, INVALID, LORA, infos
from tests.parity.test_saved import configs, make, save
from tests.support.adapters import quiet_peft
from tests.support.command_line import Loramux

P = "base_model.model."
UNSUPPORTED = "UNSUPPORTED_ADAPTER_FEATURE"
MISMATCH = "ADAPTER_BASE_MISMATCH"
NORM, HEAD, EMBED = f"{P}model.norm.weight", f"{P}lm_head.weight", f"{P}model.embed_tokens"
ROWS = f"{EMBED}.token_adapter.trainable_tokens_delta"
TOKENS: dict[str, Any] = {
    "peft_type": "TRAINABLE_TOKENS", "token_indices": [5, 2], "target_modules": "embed_tokens",
}  # fmt: skip
SAVED = CONFIG | {"modules_to_save": ["norm", "lm_head"]}
SOME = CONFIG | {"trainable_token_indices": [5, 2]}


def test_each_tensor_has_its_meaning() -> None:
    _, contents = read_contents(SAVED, infos(LORA | {NORM: [4], HEAD: [9, 4]}))
    assert [(edit.module, edit.kind, edit.parameter) for edit in contents.edits] == [
        ("lm_head", EditKind.PARAMETER, "weight"),
        ("model.norm", EditKind.PARAMETER, "weight"),
    ]
    # Not in modules_to_save: PEFT saved it because the vocabulary was resized, or to be sure.
    for name in (f"{EMBED}.weight", f"{EMBED}.base_layer.weight"):
        _, contents = read_contents(CONFIG, infos(LORA | {name: [9, 4]}))
        (edit,) = contents.edits
        assert (edit.module, edit.kind) == ("model.embed_tokens", EditKind.SHARED_WEIGHT)
    for config, name in ((SOME, ROWS), (TOKENS, f"{EMBED}.trainable_tokens_delta")):
        _, contents = read_contents(config, infos((LORA if "r" in config else {}) | {name: [2, 4]}))
        (edit,) = contents.edits
        assert (edit.kind, edit.tokens) == (EditKind.TOKENS, (5, 2))
    config = CONFIG | {"target_modules": ["q_proj", "embed_tokens"]}
    pair = {f"{EMBED}.lora_embedding_A": [2, 9], f"{EMBED}.lora_embedding_B": [4, 2]}
    _, contents = read_contents(config, infos(LORA | pair))
    assert [(m.is_embedding, m.is_outer, m.in_features) for m in contents.modules] == [
        (True, True, 9),
        (False, False, 4),
    ]


@pytest.mark.parametrize(
    ("config", "shapes", "reason", "message"),
    [
        (SAVED | {"modules_to_save": "norm"}, LORA, UNSUPPORTED, "a regular expression"),
        (SAVED | {"modules_to_save": ["n(o)"]}, LORA, UNSUPPORTED, "patterns are not sup"),
        (SAVED | {"modules_to_save": ["x"] * 65}, LORA, INVALID, "has 65 names; the limit is 64"),
        (SAVED | {"modules_to_save": ["q_proj"]}, LORA | {
            f"{P}model.layers.0.self_attn.q_proj.weight": [3, 4]}, INVALID, "is adapted, and also"),
        (CONFIG, LORA | {f"{P}model.layers.0.mlp.up_proj.weight": [3, 4]}, UNSUPPORTED,
         "tensors of modules in modules_to_save"),
        (SOME, LORA, INVALID, "but adapter_config.json has trainable_token_indices"),
        (SOME, LORA | {ROWS: [3, 4]}, FILE, "one row for each of the 2 tokens"),
        (CONFIG, LORA | {ROWS: [2, 4]}, FILE, "one row for each of the 0 tokens"),
        (CONFIG | {"trainable_token_indices": [5, 5]}, LORA, INVALID, "has a token twice"),
        (CONFIG | {"trainable_token_indices": [-1]}, LORA, INVALID, "token ids from 0"),
        (CONFIG | {"trainable_token_indices": 5}, LORA, INVALID, "or an object of such"),
        (CONFIG | {"trainable_token_indices": {"lm_head": []}}, LORA, INVALID,
         "'lm_head'] is empty"),
        (TOKENS, {f"{EMBED}.weight": [9, 4]}, INVALID, "no tensor '.trainable_tokens_delta'"),
        (TOKENS | {"target_modules": "wte"}, {f"{EMBED}.trainable_tokens_delta": [2, 4]}, INVALID,
         "of a module in target_modules"),
        (CONFIG | {"target_modules": ["embed_tokens"]}, {f"{EMBED}.lora_embedding_A": [2, 9]}, FILE,
         "has lora_embedding_A but no lora_embedding_B"),
        (IA3 | {"modules_to_save": ["q_proj"]}, {
            f"{P}model.layers.0.self_attn.q_proj.ia3_l": [3, 1],
            f"{P}model.layers.0.self_attn.q_proj.weight": [3, 4]}, INVALID, "is adapted, and also"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    config: dict[str, Any], shapes: dict[str, list[int]], reason: str, message: str
) -> None:
    with pytest.raises(PackageError) as caught:
        read_contents(config, infos(shapes))
    assert message in str(caught.value)
    assert caught.value.reason == reason


def test_what_peft_saves_twice_counts_once() -> None:
    again = {f"{P}model.norm.{part}.weight": [4] for part in ("original_module", "modules_to_save")}
    _, contents = read_contents(SAVED, infos(LORA | {NORM: [4]} | again))
    (edit,) = contents.edits
    assert edit.tensor.name == NORM


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        (SAVED, LORA | {NORM: [5]}, "the parameter has shape [5], but that of the base model has"),
        (SAVED | {"modules_to_save": ["router"]}, LORA | {f"{P}model.layers.0.router.weight": [4]},
         "router.weight is not a parameter of the base model that an adapter can replace"),
        (SOME, LORA | {ROWS: [2, 3]}, "has shape [2, 3], but that of the base model has [2, 4]"),
        (SOME | {"trainable_token_indices": [9, 2]}, LORA | {ROWS: [2, 4]},
         "a row for token 9, but the base model has 9 tokens"),
    ],
)  # fmt: skip
def test_what_the_base_does_not_have_so_does_not_fit(
    config: dict[str, Any], shapes: dict[str, list[int]], message: str
) -> None:
    _, contents = read_contents(config, infos(shapes))
    layers = {module.module: (4, 3) for module in contents.modules}
    parameters = {"model.norm.weight": (4,), "model.embed_tokens.weight": (9, 4)}
    with pytest.raises(PackageError) as caught:
        check_fit(contents, layers, parameters)
    assert message in str(caught.value)
    assert caught.value.reason == MISMATCH


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_the_tools_take_them_as_peft_saved_them(
    name: str, loramux: Loramux, tmp_path: Path
) -> None:
    model = make(name)
    model.save_pretrained(str(tmp_path / "base"))
    base = read_base(tmp_path / "base")
    for seed, (method, config) in enumerate(configs(model).items()):
        folder = save(model, config, tmp_path / method, seed)
        with open_package(folder) as (file, package):
            verify(file, package, base=base)
            assert not any(finding.level == "error" for finding in lint(file, package))
            unpack(file, package, tmp_path / f"again-{seed}")
            if package.edits:  # a model without biases has none to save
                with pytest.raises(PackageError) as caught:
                    require_low_rank(package, "merge")
                assert caught.value.reason == UNSUPPORTED
            edits = len(package.edits)
        before, after = (
            load_file(path / "adapter_model.safetensors")
            for path in (folder, tmp_path / f"again-{seed}")
        )
        assert before.keys() == after.keys()
        assert all(before[key].equal(after[key]) for key in before)
        with quiet_peft():
            PeftModel.from_pretrained(make(name), str(tmp_path / f"again-{seed}"))
        shown = loramux("inspect", str(folder), "--json")
        assert shown.code == 0, shown.errors
        assert len(json.loads(shown.output)["edits"]) == edits
