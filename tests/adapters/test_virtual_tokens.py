"""Virtual tokens: config and tensors held against each other, against the base, and as files."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    CartridgeConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from loramux_adapters import PackageError, check_fit
from loramux_adapters.kinds import read_contents
from loramux_adapters.token_shape import TokenShape, token_shape
from tests.adapters.test_contents import infos
from tests.support.adapters import expected, quiet_peft, with_adapter
from tests.support.command_line import Loramux
from tests.support.encoder_models import ENCODERS, SEQ2SEQ
from tests.support.models import CONFIGS, RECURRENT, tiny_model

INVALID = "INVALID_ADAPTER_CONFIG"
UNSUPPORTED = "UNSUPPORTED_ADAPTER_FEATURE"
FILE = "INVALID_ADAPTER_FILE"
PROMPT: dict[str, Any] = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "token_dim": 8}
PREFIX = PROMPT | {"peft_type": "PREFIX_TUNING", "num_layers": 3, "num_attention_heads": 2}
MULTITASK = PROMPT | {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 1, "num_ranks": 2}
EMBEDDINGS = "prompt_embeddings"
FACTORS = {"prefix_task_cols": [1, 5, 2], "prefix_task_rows": [1, 2, 8]}
LIKE = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
SAVED: dict[str, PeftConfig] = {
    "prompt": PromptTuningConfig(**LIKE),
    "p": PromptEncoderConfig(**LIKE, encoder_hidden_size=6),
    "multitask": MultitaskPromptTuningConfig(**LIKE, num_tasks=1, num_ranks=2),
    "prefix": PrefixTuningConfig(**LIKE, prefix_projection=True, encoder_hidden_size=6),
    "cartridge": CartridgeConfig(**LIKE, num_frozen_tokens=2),
}


def save(config: PeftConfig, folder: Path) -> None:
    torch.manual_seed(0)
    with quiet_peft():
        model = get_peft_model(tiny_model("llama", vocab_size=259), copy.deepcopy(config))
        model.save_pretrained(str(folder))


def test_each_tensor_has_its_meaning() -> None:
    for method in ("PROMPT_TUNING", "P_TUNING"):
        _, contents = read_contents(PROMPT | {"peft_type": method}, infos({EMBEDDINGS: [5, 8]}))
        assert contents.virtual is not None
        assert (contents.virtual.count, contents.virtual.width) == (5, 8)
        assert not contents.virtual.has_cache
        assert not contents.changed_modules
    _, contents = read_contents(MULTITASK, infos({EMBEDDINGS: [5, 8], **FACTORS}))
    assert contents.virtual is not None
    assert contents.virtual.factors is not None
    assert [tensor.shape for tensor in contents.virtual.factors] == [(1, 5, 2), (1, 2, 8)]
    _, contents = read_contents(PREFIX, infos({EMBEDDINGS: [5, 48]}))
    assert contents.virtual is not None
    assert contents.virtual.has_cache
    assert contents.virtual.head_width == 4


def test_a_head_and_modules_trained_whole_stand_beside_virtual_tokens() -> None:
    saved = ["classifier", "score", "norm"]
    head = {"base_model.score.weight": [3, 8], "base_model.model.norm.weight": [8]}
    for config, width in ((PROMPT, 8), (PREFIX, 48)):
        reported = config | {"task_type": "SEQ_CLS", "modules_to_save": saved}
        _, contents = read_contents(reported, infos({EMBEDDINGS: [5, width], **head}))
        assert contents.virtual is not None
        assert contents.head is not None
        assert (contents.head.module, contents.head.num_labels) == ("score", 3)
        assert [edit.module for edit in contents.edits] == ["model.norm"]


@pytest.mark.parametrize(
    ("config", "shapes", "reason", "message"),
    [
        (PROMPT | {"num_virtual_tokens": 0}, {}, INVALID, "num_virtual_tokens is 0"),
        (PROMPT | {"num_virtual_tokens": True}, {}, INVALID, "num_virtual_tokens is True"),
        (PROMPT | {"num_virtual_tokens": 1 << 21}, {}, INVALID, "an integer from 1 to 1048576"),
        (PROMPT | {"token_dim": None}, {EMBEDDINGS: [5, 8]}, INVALID, "token_dim is missing"),
        (PROMPT | {"token_dim": "8"}, {EMBEDDINGS: [5, 8]}, INVALID, "token_dim is '8'"),
        (
            PROMPT | {"num_transformer_submodules": 3},
            {EMBEDDINGS: [15, 8]},
            UNSUPPORTED,
            "'num_transformer_submodules' = 3 is not supported: expected 1, or 2",
        ),
        (PROMPT | {"modules_to_save": "lm_head"}, {EMBEDDINGS: [5, 8]}, UNSUPPORTED, "list the"),
        (
            PROMPT | {"modules_to_save": ["norm"]},
            {EMBEDDINGS: [5, 8], "base_model.model.layers.0.other.weight": [8]},
            UNSUPPORTED,
            "expected 'prompt_embeddings', or tensors of modules in",
        ),
        (PROMPT, {EMBEDDINGS: [5, 8], **FACTORS}, UNSUPPORTED, "prefix_task_"),
        (PROMPT, {EMBEDDINGS: [4, 8]}, INVALID, "shape [4, 8] is not [5, 8]"),
        (PROMPT, {EMBEDDINGS: [40]}, INVALID, "shape [40] is not [5, 8]"),
        (PROMPT, {}, FILE, "tensor prompt_embeddings is missing"),
        (PROMPT, {EMBEDDINGS: [5, 8], "lm_head.weight": [9, 8]}, FILE, "lm_head.weight"),
        (MULTITASK | {"num_tasks": 3}, {}, UNSUPPORTED, "'num_tasks' = 3 is not supported"),
        (MULTITASK, {EMBEDDINGS: [5, 8]}, FILE, "tensor prefix_task_cols is missing"),
        (
            MULTITASK | {"num_ranks": 3},
            {EMBEDDINGS: [5, 8], **FACTORS},
            INVALID,
            "prefix_task_cols: shape [1, 5, 2] is not [1, 5, 3]",
        ),
        (PREFIX | {"num_layers": None}, {EMBEDDINGS: [5, 48]}, INVALID, "num_layers is missing"),
        (PREFIX | {"num_attention_heads": 3}, {EMBEDDINGS: [5, 48]}, INVALID, "not a multiple of"),
        (PREFIX, {EMBEDDINGS: [5, 40]}, INVALID, "shape [5, 40] is not [5, 48]"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    config: dict[str, Any], shapes: Mapping[str, list[int]], reason: str, message: str
) -> None:
    with pytest.raises(PackageError) as caught:
        read_contents(config, infos(shapes))
    assert message in str(caught.value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("config", "width", "token", "message"),
    [
        (PROMPT, 8, TokenShape(9, ()), "8 values, but one of the base model has 9"),
        (PREFIX, 48, TokenShape(8, ((2, 4, 4),) * 2), "for 3 layers of 2 heads of width 4"),
        (PREFIX, 48, TokenShape(8, ((2, 4, 8),) * 3), "has 3 layers of 2 heads of widths 4 and 8"),
        (PREFIX, 48, TokenShape(8, ((1, 8, 8),) * 3), "has 3 layers of 1 heads of widths 8 and 8"),
        (PREFIX, 48, TokenShape(8, ((2, 4, 4),) * 3, True), "recurrent layers, which keep none"),
        (PREFIX, 48, TokenShape(8, ()), "neither the base model nor PEFT supports"),
        (PROMPT, 8, None, "base model's tokens is not known"),
    ],
)
def test_virtual_tokens_unlike_those_of_the_base_do_not_fit(
    config: dict[str, Any], width: int, token: TokenShape | None, message: str
) -> None:
    _, contents = read_contents(config, infos({EMBEDDINGS: [5, width]}))
    with pytest.raises(PackageError) as caught:
        check_fit(contents, {}, token=token)
    assert message in str(caught.value)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
    check_fit(contents, {}, token=TokenShape(8, ((2, 4, 4),) * 3))


def test_those_for_an_encoder_and_a_decoder_fit_such_bases_alone() -> None:
    config = PROMPT | {"num_transformer_submodules": 2}
    _, contents = read_contents(config, infos({EMBEDDINGS: [10, 8]}))
    assert contents.virtual and contents.virtual.count == 5
    both = {EMBEDDINGS: [10, 8], "prefix_task_cols": [1, 10, 2], "prefix_task_rows": [1, 2, 8]}
    _, contents = read_contents(MULTITASK | {"num_transformer_submodules": 2}, infos(both))
    assert contents.virtual and contents.virtual.count == 5
    t5 = {"d_model": 8, "num_layers": 3, "num_heads": 2, "d_kv": 4, "is_encoder_decoder": True}
    check_fit(contents, {}, token=token_shape(t5))
    with pytest.raises(PackageError, match="submodules is 2, but the base model has 1"):
        check_fit(contents, {}, token=TokenShape(8, ()))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_config_of_the_base_says_what_its_tokens_are_like(architecture: str) -> None:
    config = CONFIGS[architecture]()
    with quiet_peft():
        model = get_peft_model(tiny_model(architecture), PrefixTuningConfig(**LIKE))
    fields = model.active_peft_config.to_dict() | {"peft_type": "PREFIX_TUNING"}
    _, contents = read_contents(
        fields, infos({EMBEDDINGS: [5, 2 * fields["num_layers"] * fields["token_dim"]]})
    )
    check_fit(contents, {}, token=token_shape(json.loads(config.to_json_string(use_diff=False))))


@pytest.mark.parametrize("name", ENCODERS | SEQ2SEQ)
def test_a_config_of_a_base_with_an_encoder_says_how_wide_its_tokens_are(name: str) -> None:
    config = (ENCODERS | SEQ2SEQ)[name]
    with torch.device("meta"):
        embedding = AutoModel.from_config(config).get_input_embeddings()
    token = token_shape(json.loads(config.to_json_string(use_diff=False)))
    assert token
    assert token.width == embedding.weight.shape[1]


@pytest.mark.parametrize(
    "architecture",
    sorted((CONFIGS | RECURRENT).keys() - {"nemotron-h"}),  # whose config does not count layers
)
def test_a_config_of_the_base_says_whether_layers_are_recurrent(architecture: str) -> None:
    config = (CONFIGS | RECURRENT)[architecture]()
    token = token_shape(json.loads(config.to_json_string(use_diff=False)))
    assert token
    assert token.has_recurrent_layers == (architecture in RECURRENT)


def test_kinds_of_layers_decide() -> None:
    sizes = {"hidden_size": 8, "n_layer": 2, "n_head": 2, "mamba_d_state": 8}
    for kinds, is_recurrent in (
        (["attention", "attention"], False), (["mamba", "attention"], True),
        ([7, "full_attention"], False), ("mamba", True), (None, True),
    ):  # fmt: skip
        token = token_shape(sizes | {"layer_types": kinds})
        assert token
        assert token.has_recurrent_layers == is_recurrent


def test_a_config_that_says_little_says_nothing() -> None:
    assert token_shape({"hidden_size": 8, "num_hidden_layers": 2}) is None
    assert token_shape({"hidden_size": -8, "n_layer": 2, "n_head": 2}) is None


@pytest.mark.parametrize("method", SAVED)
def test_tools_know_what_a_package_of_virtual_tokens_is(
    loramux: Loramux, tiny_base: Path, tmp_path: Path, method: str
) -> None:
    save(SAVED[method], tmp_path / "saved")
    assert loramux("pack", "saved", "-o", "a.safetensors").code == 0
    done = loramux("verify", "a.safetensors", "--base", str(tiny_base))
    assert done.code == 0, done.errors
    assert "5 virtual tokens" in done.output
    assert loramux("lint", "a.safetensors").code == 0
    assert "5 virtual tokens" in loramux("inspect", "a.safetensors").output
    shown = json.loads(loramux("inspect", "a.safetensors", "--json").output)
    assert (shown["virtual_tokens"], shown["modules"]) == (5, [])
    assert loramux("convert", "a.safetensors", "--dtype", "bfloat16", "-o", "b.pkg").code == 0
    assert loramux("verify", "b.pkg", "--base", str(tiny_base)).code == 0
    refused = loramux("convert", "a.safetensors", "--rank", "2", "-o", "c.pkg")
    assert refused.code == 1
    assert SAVED[method].peft_type.value in refused.errors
    assert loramux("unpack", "a.safetensors", "-o", "again").code == 0
    before, after = (
        load_file(Path(folder) / "adapter_model.safetensors") for folder in ("saved", "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    base = tiny_model("llama", vocab_size=259)
    answers = [expected(with_adapter(base, Path(name)), [5, 6], 3) for name in ("saved", "again")]
    assert answers[0].tokens == answers[1].tokens


def test_a_value_that_is_not_finite_is_found(loramux: Loramux, tmp_path: Path) -> None:
    save(SAVED["prefix"], tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[EMBEDDINGS][2, 3] = float("nan")
    save_file(tensors, path)
    for command in ("verify", "lint"):
        done = loramux(command, "saved")
        assert done.code == 1
        assert "prompt_embeddings" in done.output + done.errors
