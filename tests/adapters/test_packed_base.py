"""Adapters against the folder of a base that was saved quantized."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loramux_adapters.base import read_base
from tests.support.adapters import save_adapter
from tests.support.command_line import Loramux
from tests.support.dequantized import METHODS, save_quantized
from tests.support.models import byte_tokenizer, tiny_model


@pytest.mark.parametrize("name", ["gptq-4", "gptq-8", "awq", "packed-4", "packed-8", "fp8-blocks"])
def test_its_layers_have_the_widths_of_the_model(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = read_base(save_quantized(model, tmp_path, METHODS[name]))
    assert base.features_of("model.layers.1.mlp.down_proj") == (48, 32)
    assert base.features_of("model.layers.0.self_attn.k_proj") == (32, 16)


def test_a_shape_may_be_of_either_integer(tmp_path: Path) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, METHODS["packed-4"])
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        shapes = {n: t.int() for n, t in tensors.items() if n.endswith("weight_shape")}
        save_file({**tensors, **shapes}, path)
    base = read_base(folder)
    assert base.features_of("model.layers.1.mlp.down_proj") == (48, 32)


def test_adapters_are_checked_against_it_and_not_added_to_it(
    loramux: Loramux, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    save_quantized(model, tmp_path / "base", METHODS["awq"])
    save_adapter(model, tmp_path / "fitting", seed=0, target_modules=["down_proj"])
    wide = tiny_model("llama", intermediate_size=64)
    save_adapter(wide, tmp_path / "wide", seed=0, target_modules=["down_proj"])
    assert loramux("verify", "fitting", "--base", "base").code == 0
    done = loramux("verify", "wide", "--base", "base")
    assert done.code == 1
    assert "48" in done.errors
    done = loramux("merge", "fitting", "--into-base", "base", "-o", "whole")
    assert "its weight in the base has dtype I32; expected one of F32, F16, BF16" in done.errors


def test_training_wants_the_model_that_it_was_made_of(loramux: Loramux, tmp_path: Path) -> None:
    base = save_quantized(tiny_model("llama"), tmp_path / "base", METHODS["awq"])
    byte_tokenizer().save_pretrained(str(base))
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    done = loramux("train", "--base", "base", "--data", "data.jsonl", "-o", "out.lora")
    assert done.code == 1
    assert "base was saved with quant_method 'awq', which does not support training" in done.errors
