"""An adapter against the folder of its base: whether it fits, and what it makes of the weights."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loramux_adapters import PackageError, open_package
from loramux_adapters.base import read_base
from loramux_adapters.weights.verify import verify
from tests.adapters.files import CONFIG, pair, write_folder
from tests.support.adapters import quiet_peft, save_adapter
from tests.support.command_line import Loramux
from tests.support.encoder_models import own_model, save_encoder_base
from tests.support.models import VOCAB, tiny_model

TARGETS = {
    "llama": ["q_proj", "o_proj", "down_proj"],
    "llama-bias": ["k_proj", "up_proj"],
    "qwen3": ["q_proj", "gate_proj"],
    "gemma2": ["v_proj", "up_proj"],
    "gemma3": ["o_proj", "gate_proj"],
    "mistral": ["q_proj", "down_proj"],
    "qwen3-moe": ["k_proj", "o_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt-neox": ["query_key_value", "dense"],
    "opt": ["q_proj", "fc2"],
}


def save_base(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(str(folder), **options)
    return folder


def merged_by_peft(base: Path, *adapters: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    with quiet_peft():
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.eval()


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("architecture", TARGETS)
def test_a_merged_model_is_that_of_merge_and_unload(
    architecture: str, loramux: Loramux, tmp_path: Path
) -> None:
    model = tiny_model(architecture, tie_word_embeddings=False)
    base = save_base(model, tmp_path / "base")
    with quiet_peft():
        adapter = save_adapter(
            model, tmp_path / "adapter", seed=1, r=4, target_modules=TARGETS[architecture]
        )
    assert loramux("verify", str(adapter), "--base", "base").code == 0
    assert loramux("merge", str(adapter), "--into-base", "base", "-o", "whole").code == 0
    expected, found = merged_by_peft(base, adapter), loaded(tmp_path / "whole")
    prompt = torch.tensor([[1, 7, 30, 4]])
    with torch.inference_mode():
        logits = [each(prompt).logits for each in (expected, found, model)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[1], logits[2], atol=1e-3)
    weights = found.state_dict()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_rounded_once(
    dtype: torch.dtype, loramux: Loramux, tmp_path: Path
) -> None:
    model = tiny_model("llama").to(dtype)
    base = save_base(model, tmp_path / "base")
    adapter = save_adapter(
        tiny_model("llama"), tmp_path / "adapter", seed=1, r=4, target_modules=["q_proj"]
    )
    loramux("merge", str(adapter), "--into-base", "base", "-o", "whole")
    expected = merged_by_peft(base, adapter, dtype=dtype).state_dict()
    found = load_file(tmp_path / "whole" / "model.safetensors")
    for name, weight in found.items():
        assert weight.dtype == dtype
        torch.testing.assert_close(weight, expected[name], rtol=2**-7, atol=0)
        assert (weight == expected[name]).float().mean() > 0.99


def test_shards_stay_shards_and_other_files_come_along(loramux: Loramux, tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = save_base(model, tmp_path / "base", max_shard_size="20KB")
    (base / "tokenizer.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"the old model")
    (base / "pytorch_model.bin.index.json").write_text("{}")
    (base / "other.safetensors").write_bytes(b"the old model")
    (base / "original").mkdir()
    adapter = save_adapter(model, tmp_path / "a", seed=1, r=2, target_modules="all-linear")
    assert loramux("merge", str(adapter), "--into-base", "base", "-o", "whole").code == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    dropped = {
        "pytorch_model.bin", "pytorch_model.bin.index.json", "other.safetensors", "original",
    }  # fmt: skip
    assert names == {path.name for path in base.iterdir()} - dropped
    assert sum(name.startswith("model-0") for name in names) > 2
    expected, found = merged_by_peft(base, adapter).state_dict(), loaded(tmp_path / "whole")
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)


def test_a_package_knows_the_base_that_it_was_made_for(loramux: Loramux, tmp_path: Path) -> None:
    model = tiny_model("llama")
    save_base(model, tmp_path / "base")
    save_base(model, tmp_path / "shards", max_shard_size="20KB")
    for folder in ("base", "shards"):
        (tmp_path / folder / "tokenizer.json").write_text("{}")
    save_adapter(model, tmp_path / "a", seed=1, r=2, target_modules=["q_proj"])
    assert loramux("pack", "a", "-o", "package", "--base", "base").code == 0
    for folder in ("base", "shards"):
        done = loramux("verify", "package", "--base", folder, "--json")
        assert json.loads(done.output)["base fingerprint"] == "matches the manifest"
    assert loramux("unpack", "package", "-o", "folder").code == 0
    assert loramux("pack", "folder", "-o", "again").code == 0
    assert Path("again").read_bytes() == Path("package").read_bytes()

    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    save_base(model, tmp_path / "tuned")
    save_base(tiny_model("llama", num_hidden_layers=3), tmp_path / "deep")
    save_base(tiny_model("mistral"), tmp_path / "mistral")
    (tmp_path / "base" / "tokenizer.json").write_text("[]")
    for folder, part in (
        ("tuned", "weights is 'sha256:"), ("deep", "shapes is 'sha256:"),
        ("mistral", "model_type is 'llama'"), ("base", "tokenizer is 'sha256:"),
    ):  # fmt: skip
        done = loramux("verify", "package", "--base", folder)
        assert (done.code, done.output) == (1, "")
        assert f"the package was made for another base model: {part}" in done.errors


def test_a_base_that_is_none_is_not_noted(loramux: Loramux, tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    done = loramux("pack", "a", "-o", "package", "--base", "a")
    assert done.code == 1
    assert "base model: a/config.json cannot be read" in done.errors
    assert not Path("package").exists()


def test_several_adapters_go_in_with_their_weights(loramux: Loramux, tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = save_base(model, tmp_path / "base")
    for seed, name in enumerate(("one", "two")):
        save_adapter(model, tmp_path / name, seed=seed, r=3, target_modules=["q_proj", "up_proj"])
    assert loramux("merge", "one", "two", "--into-base", "base", "-o", "whole").code == 0
    arguments = ("merge", "one", "two", "--weights", "1,0", "--into-base", "base", "-o", "first")
    assert loramux(*arguments).code == 0
    for folder, adapters in (("whole", ["one", "two"]), ("first", ["one"])):
        expected = merged_by_peft(base, *(tmp_path / name for name in adapters)).state_dict()
        for name, weight in loaded(tmp_path / folder).state_dict().items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)


def test_a_checkpoint_of_the_bare_model_lacks_a_prefix(loramux: Loramux, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    save_base(model, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    assert bare.keys() != weights.keys()
    save_file(bare, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with quiet_peft():
        adapter = save_adapter(model, tmp_path / "a", seed=1, r=2, target_modules=["c_proj"])
    assert loramux("merge", str(adapter), "--into-base", "base", "-o", "whole").code == 0
    expected, found = merged_by_peft(tmp_path / "base", adapter), loaded(tmp_path / "whole")
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "mpnet"])
def test_a_checkpoint_with_a_head_has_a_part_before_the_names_of_the_bare_model(
    architecture: str, tmp_path: Path
) -> None:
    base = read_base(save_encoder_base(architecture, tmp_path))
    own = own_model(tmp_path)
    layers = [(name, part) for name, part in own.named_modules() if isinstance(part, nn.Linear)]
    for name, layer in layers:
        if not name.startswith("pooler."):  # which is not saved
            found = base.layer(name)
            assert found and found.features == (layer.in_features, layer.out_features)
    assert base.layer("encoder.layer.7.output.dense") is None


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("nemotron-h", ["in_proj", "q_proj", "up_proj"]),
        ("kimi-linear", ["q_proj", "f_a_proj", "g_b_proj"]),
    ],
)
def test_a_checkpoint_has_names_of_its_own(
    loramux: Loramux, architecture: str, targets: list[str], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    save_base(model, tmp_path / "base")
    adapter = save_adapter(model, tmp_path / "a", seed=1, r=2, target_modules=targets)
    assert loramux("merge", str(adapter), "--into-base", "base", "-o", "whole").code == 0
    expected, found = merged_by_peft(tmp_path / "base", adapter), loaded(tmp_path / "whole")
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_a_tied_head_is_refused(loramux: Loramux, tmp_path: Path) -> None:
    save_base(tiny_model("llama"), tmp_path / "base")
    head = pair("lm_head", 2, features=(32, VOCAB))
    write_folder(tmp_path / "adapter", head, CONFIG | {"target_modules": ["lm_head"]})
    assert loramux("merge", "adapter", "--into-base", "base", "-o", "untied").code == 0
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    done = loramux("merge", "adapter", "--into-base", "base", "-o", "whole")
    assert done.code == 1
    assert "module lm_head shares its weight with the input embeddings" in done.errors
    assert not Path("whole").exists()


def small_base(folder: Path, header: object, config: object = None) -> Path:
    """Write a model folder with this header and no more data than a q_proj of 3 x 4 needs."""
    folder.mkdir()
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(48))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def tensor(shape: list[Any], dtype: str = "F32", end: int = 48) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("header", "config", "message"),
    [
        ({Q_PROJ: tensor([4, 4])}, None, "maps 4 to 3 features, but the base model maps 4 to 4"),
        ({Q_PROJ: tensor([12])}, None, "is not an adaptable layer of the base model"),
        ({"model.norm.weight": tensor([12])}, None, "q_proj is not an adaptable layer"),
        ({Q_PROJ: tensor([3, 4], end=52)}, None, "has a malformed tensor"),
        ({Q_PROJ: tensor([3, "4"])}, None, "has a malformed tensor"),
        ({Q_PROJ: [1]}, None, "has a malformed tensor"),
        ([], None, "model.safetensors is not a JSON object"),
        (b"{", None, "is not a safetensors file"),
        (b"{,}", None, "model.safetensors is not valid JSON"),
        ({Q_PROJ: tensor([3, 4])}, [3], "config.json is not a JSON object"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(
    header: object, config: object, message: str, loramux: Loramux, tmp_path: Path
) -> None:
    small_base(tmp_path / "base", header, config)
    write_folder(tmp_path / "adapter")
    for command in ("verify adapter --base base", "merge adapter --into-base base -o whole"):
        done = loramux(*command.split())
        assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
        assert message in done.errors
    assert not Path("whole").exists()


def test_a_quantized_base_is_refused(loramux: Loramux, tmp_path: Path) -> None:
    small_base(tmp_path / "base", {Q_PROJ: tensor([3, 4], "F8_E4M3", end=12)})
    write_folder(tmp_path / "adapter")
    done = loramux("merge", "adapter", "--into-base", "base", "-o", "whole")
    assert done.code == 1
    assert "its weight in the base has dtype F8_E4M3; expected one of F32, F16, BF16" in done.errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3])
def test_shards_are_in_the_folder(name: object, tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", {Q_PROJ: tensor([3, 4])})
    (base / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {Q_PROJ: name}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PackageError, match="which is not in the folder"):
        read_base(base)


def test_verify_needs_no_weights_of_the_base(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", {Q_PROJ: tensor([3, 4])})
    folder = write_folder(tmp_path / "adapter")
    with open_package(folder) as (file, package):
        done = {each.check: each.found for each in verify(file, package, base=read_base(base))}
    assert done["base"] == f"fits the llama model in {base}"
