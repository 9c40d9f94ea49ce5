"""Bases saved in FP8, GPTQ, AWQ or by compressed-tensors: dequantized when they are loaded."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from loramux_server.kernels.weight_storage import Quantization
from loramux_server.models.decoder_model import prepare
from loramux_server.models.dequantize import layout
from loramux_server.models.dequantize.loading import held_dtype
from loramux_server.models.dequantize.method import SavedMethod, saved_method
from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from tests.parity.test_peft import cases, check
from tests.support.dequantized import METHODS, save_quantized
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_model_with_the_numbers_that_were_saved(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_NUMBERS", 32 * 32)  # so that they come in several parts
    model = tiny_model("llama-bias")
    folder = save_quantized(model, tmp_path, METHODS[name])
    with caplog.at_level(logging.INFO, "loramux_server"):
        base = load_base_model(str(folder), device="cpu")
    assert base.dtype == torch.float32
    # Of so small a model it has every number.
    assert base.fingerprint == prepare(model).fingerprint
    (line,) = (record.getMessage() for record in caplog.records if "saved in" in record.msg)
    dtype = str(METHODS[name].dtype).removeprefix("torch.")
    assert f"was saved in {METHODS[name].config['quant_method']}" in line
    assert f"GB); its weights are dequantized to {dtype} (" in line


def test_adapters_on_it_equal_peft_on_the_dequantized_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save_quantized(model, tmp_path / "base", METHODS["gptq-4"])
    requests = cases(model, tmp_path, num_requests=13)
    harness = Harness(load_base_model(str(folder), device="cpu"), kernels="cpu", rows=128)
    for case in requests:
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case)


def test_experts_are_dequantized_before_they_are_put_together(tmp_path: Path) -> None:
    model = tiny_model("qwen3-moe")
    folder = save_quantized(model, tmp_path / "base", METHODS["fp8-blocks"])
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    assert "model.layers.0.mlp.experts.3.up_proj.weight_scale_inv" in names
    model.save_pretrained(str(tmp_path / "plain"))
    base, plain = (
        load_base_model(str(path), device="cpu") for path in (folder, tmp_path / "plain")
    )
    assert base.fingerprint == plain.fingerprint


def test_it_may_be_rounded_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save_quantized(model, tmp_path / "base", METHODS["gptq-8"])
    model.save_pretrained(str(tmp_path / "plain"))
    logprobs = []
    for path in (folder, tmp_path / "plain"):
        base = load_base_model(str(path), device="cpu", quantization=Quantization.INT8)
        harness = Harness(base, kernels="cpu", quantization=Quantization.INT8)
        harness.submit(range(3, 20), max_tokens=1, num_logprobs=VOCAB)
        harness.run()
        logprobs.append(harness.tokens[0][0].logprobs)
    assert logprobs[0] == logprobs[1] is not None


def test_it_may_be_served_in_16_bits(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save_quantized(model, tmp_path, METHODS["awq"])
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    base = load_base_model(str(folder), device="cpu", dtype="float16")
    assert {group.dtype for group in base.groups} == {base.dtype} == {torch.float16}
    assert base.fingerprint == prepare(model).fingerprint
    assert {5, 7} <= set(base.eos_token_ids)


@pytest.mark.parametrize(
    ("config", "dtype"), [({}, "float16"), ({"dtype": "bfloat16"}, "bfloat16")], ids=str
)
def test_it_is_held_in_what_the_base_computes_in(config: dict[str, str], dtype: str) -> None:
    method = SavedMethod("gptq")
    assert str(held_dtype(LlamaConfig(**config), method)) == f"torch.{dtype}"


@pytest.mark.parametrize("block", [[128, 64], "128x64"], ids=str)
def test_blocks_are_written_in_two_ways(block: list[int] | str) -> None:
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float", "block_structure": block}}}
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    found = saved_method(LlamaConfig(quantization_config=said))
    assert found is not None
    assert found.block == (128, 64)


@pytest.mark.parametrize("groups", [[1], {"group_0": "all"}], ids=str)
def test_a_config_that_says_nonsense_is_refused(groups: object) -> None:
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    with pytest.raises(ValueError, match="quantization_config is malformed"):
        saved_method(LlamaConfig(quantization_config=said))


def test_torchao_may_round_it_again(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    folder = save_quantized(tiny_model("llama"), tmp_path, METHODS["fp8-blocks"])
    base = load_base_model(
        str(folder), device="cpu", kernels="torch", quantization=Quantization.INT8
    )
    assert not any(group.is_plain for group in base.groups)


def _fp8(**config: Any) -> dict[str, Any]:
    return {"quant_method": "fp8"} | config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "aqlm"}, "'aqlm', which is not supported. Use one of FP8, GPTQ"),
        ({"quant_method": "gptq", "bits": 3}, "bits 3, which is not supported. Use 2 or 4 or 8,"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            "checkpoint_format 'marlin', which is not supported. Use gptq or gptq_v2",
        ),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv', which is not"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            "format 'nvfp4-pack-quantized', which is not supported. Use float-quantized",
        ),
        (
            {
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "transform_config": {"config_groups": {"R1": {}}},
            },
            r"transform_config \['R1'\], which is not supported. Use no transforms",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo 'NVFP4', which is not"),
        (_fp8(weight_block_size=[0, 128]), r"blocks of \[0, 128\]"),
        (_fp8(), r"down_proj, \[32, 48\], have shape \[1, 3\]; expected one"),
        ({"quant_method": "gptq", "bits": 4}, "scale_inv, which is not part of gptq of 4 bits"),
        (None, "weight_scale_inv, so its weights are quantized, but its config.json has no"),
    ],
    ids=lambda each: None if isinstance(each, str) else str(each),
)  # fmt: skip
def test_what_is_not_served_is_refused_with_what_would_be(
    config: dict[str, Any] | None, message: str, fp8_folder: Path
) -> None:
    path = fp8_folder / "config.json"
    said = json.loads(path.read_text()) | {"quantization_config": config}
    path.write_text(json.dumps(said))
    with pytest.raises(UnservableModelError, match=message):
        load_base_model(str(fp8_folder), device="cpu")


@pytest.fixture(scope="module")
def fp8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in FP8, whose config a test may write anew."""
    return save_quantized(
        tiny_model("llama"), tmp_path_factory.mktemp("fp8"), METHODS["fp8-blocks"]
    )


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("gptq-4", {"scales": None}, "lacks the tensor .*0.self_attn.q_proj.scales, which"),
        (
            "gptq-4", {"g_idx": torch.zeros(31, dtype=torch.int32)},
            r"q_proj.g_idx has shape \[31\]; expected \[32\]",
        ),
        ("gptq-4", {"g_idx": torch.arange(32).int()}, "g_idx has groups 0 to 31; expected 0 to 1"),
        ("awq", {"qzeros": torch.zeros(2, 4)}, "qzeros has dtype F32; expected I32"),
        ("awq", {"act_scale.scales": torch.ones(2)}, "scales, which is not part of awq of 4 bits"),
        (
            "packed-8", {"weight_packed": torch.zeros(32, 5, dtype=torch.int32)},
            r"weight_packed has shape \[32, 5\]; expected \[32, 4\] \(4 bits\) or",
        ),
        ("fp8-tensor", {"weight_scale": None}, "lacks the tensor .*_scale_inv or .*weight_scale, "),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_name(
    name: str, damage: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, METHODS[name])
    layer = "model.layers.0.self_attn.q_proj"
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for key, value in damage.items():
            tensors.pop(f"{layer}.{key}", None)
            if value is not None:
                tensors[f"{layer}.{key}"] = value
        save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnservableModelError, match=message):
        load_base_model(str(folder), device="cpu")


def test_transposed_weights_are_refused(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(str(tmp_path))
    path = tmp_path / "config.json"
    said = json.loads(path.read_text()) | {"quantization_config": METHODS["gptq-4"].config}
    path.write_text(json.dumps(said))
    with pytest.raises(UnservableModelError, match="of type gpt2 are not supported"):
        load_base_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["", "model.Q4_K_M.gguf"])
def test_gguf_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnservableModelError, match="GGUF is not supported: use the folder of saf"):
        load_base_model(str(tmp_path / name), device="cpu")


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, METHODS["awq"])
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UnservableModelError, match="file not fully covered"):
        load_base_model(str(folder), device="cpu")
