"""What other tools saved becomes a package that adds the very same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from loramux._upload import open_upload
from loramux_adapters import PackageError, open_package
from loramux_adapters.kinds import FOLDED, FULL_RANK
from loramux_adapters.tensorfile import tensor_reader
from loramux_adapters.weights.sources import FIELDS_OF_FOLDED
from loramux_adapters.weights.sources import FOLDED as METHODS
from loramux_adapters.weights.update import read_updates
from tests.adapters.test_adalora import save_adalora
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

Array = npt.NDArray[np.float32]
LAYERS = {
    "model.layers.0.self_attn.q_proj": (4, 6, 8),
    "model.layers.0.mlp.down_proj": (2, 10, 8),
    "model.layers.11.self_attn.q_proj": (4, 6, 8),
}
"""Layer -> rank, width of the input and of the output."""
ALPHAS = {
    "model.layers.0.self_attn.q_proj": 3.0,
    "model.layers.0.mlp.down_proj": 0.7,
    "model.layers.11.self_attn.q_proj": 3.0,
}


def factors(layer: str) -> tuple[Array, Array]:
    rank, width, out = LAYERS[layer]
    random = np.random.default_rng(len(layer))
    return (
        random.standard_normal((rank, width), np.float32),
        random.standard_normal((out, rank), np.float32),
    )


def save_kohya(
    path: Path, more: dict[str, Array] | None = None, *, flat: str = "", alpha: bool = True
) -> Path:
    """Save LAYERS as kohya's trainers do; with `flat` before names whose dots are `_`."""
    tensors: dict[str, Array] = dict(more or {})
    for layer in LAYERS:
        name = f"{flat}{layer.replace('.', '_')}" if flat else layer
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = factors(layer)
        if alpha:
            tensors[f"{name}.alpha"] = np.array(ALPHAS[layer], np.float32)
    save_file(tensors, path)
    return path


def updates(path: Path) -> dict[str, Array]:
    with open_package(path) as (file, package):
        return {
            update.module: np.float32(update.scale) * (update.b_OR @ update.a_RI)
            for update in read_updates(file, package)
        }


@pytest.mark.parametrize("flat", ["", "lora_", "lycoris_"])
def test_a_kohya_file_adds_alpha_over_rank_times_up_down(tmp_path: Path, flat: str) -> None:
    found = updates(save_kohya(tmp_path / "one.safetensors", flat=flat))
    assert found.keys() == LAYERS.keys()
    for layer, update in found.items():
        a, b = factors(layer)
        scale = np.float32(ALPHAS[layer]) / LAYERS[layer][0]
        np.testing.assert_allclose(update, scale * (b @ a), rtol=1e-6)


def test_the_bytes_of_a_kohya_file_are_kept(tmp_path: Path) -> None:
    with open_package(save_kohya(tmp_path / "one.safetensors")) as (file, package):
        read = tensor_reader(file, package.file.data_start)
        for module in package.modules:
            a, b = factors(module.module)
            assert b"".join(read(module.a)) == a.tobytes()
            assert b"".join(read(module.b)) == b.tobytes()


def test_without_alpha_it_is_the_rank(tmp_path: Path) -> None:
    found = updates(save_kohya(tmp_path / "one.safetensors", alpha=False))
    for layer, update in found.items():
        a, b = factors(layer)
        np.testing.assert_allclose(update, b @ a, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_alpha_is_read_in_each_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    save_torch_file(
        {
            "model.layers.0.mlp.up_proj.lora_down.weight": torch.ones(2, 4, dtype=dtype),
            "model.layers.0.mlp.up_proj.lora_up.weight": torch.ones(4, 2, dtype=dtype),
            "model.layers.0.mlp.up_proj.alpha": torch.tensor([0.5], dtype=dtype),
        },
        str(tmp_path / "one.safetensors"),
    )
    with open_package(tmp_path / "one.safetensors") as (_, package):
        assert package.modules[0].scale == 0.25


ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(("name", "message"), [
    ("lora_unet_down_blocks_0_proj.lora_down.weight", "an image model"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "an image model"),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "an image model"),
    ("model.layers.0.mlp.up_proj.dora_scale", "dora_scale cannot be converted"),
    ("model.layers.0.mlp.up_proj.hada_w1_a", "hada_ cannot be converted"),
    ("model.layers.0.mlp.up_proj.lora_mid.weight", "lora_mid cannot be converted"),
    ("model.layers.0.mlp.up_proj.lora_down.weight", "has no lora_up.weight"),
    ("lora_somewhere_else.lora_up.weight", "has no lora_down.weight"),
    ("model.norm.weight", "expected lora_down.weight, lora_up.weight or alpha"),
])  # fmt: skip
def test_what_a_kohya_file_must_not_hold_is_named(tmp_path: Path, name: str, message: str) -> None:
    path = save_kohya(tmp_path / "one.safetensors", {name: ONE})
    with pytest.raises(PackageError, match=message) as caught, open_package(path):
        pass
    assert name.removesuffix(".weight").rpartition(".")[0] in str(caught.value)


def test_names_that_stand_for_no_known_module_are_refused(tmp_path: Path) -> None:
    more = {"lora_my_own_layer.lora_up.weight": ONE, "lora_my_own_layer.lora_down.weight": ONE}
    path = save_kohya(tmp_path / "one.safetensors", more)
    with (
        pytest.raises(PackageError, match="lora_my_own_layer' matches no kn"),
        open_package(path),
    ):
        pass


def test_the_base_model_says_where_dots_were(loramux: Loramux, tmp_path: Path) -> None:
    tiny_model("gpt-neox").save_pretrained(str(tmp_path / "base"))
    name = "gpt_neox_layers_1_attention_query_key_value"
    down, up = np.ones((2, 32), np.float32), np.ones((96, 2), np.float32)
    flat = {f"lora_{name}.lora_down.weight": down, f"lora_{name}.lora_up.weight": up}
    save_file(flat, tmp_path / "one.safetensors")
    assert loramux("pack", "one.safetensors", "--base", "base", "-o", "out").code == 0
    assert updates(Path("out")).keys() == {"gpt_neox.layers.1.attention.query_key_value"}
    other = {f"lora_x_{name}.lora_down.weight": down, f"lora_x_{name}.lora_up.weight": up}
    save_file(other, tmp_path / "other.safetensors")
    done = loramux("pack", "other.safetensors", "--base", "base", "-o", "out")
    assert (done.code, done.errors.count("\n")) == (1, 1)
    assert "matches no known module of the base model" in done.errors


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9, float("nan")])
def test_an_alpha_that_is_none_is_refused(tmp_path: Path, value: float) -> None:
    more: dict[str, Array] = {"model.layers.0.self_attn.q_proj.alpha": np.array(value, np.float32)}
    path = save_kohya(tmp_path / "one.safetensors", more, alpha=False)
    with pytest.raises(PackageError, match="alpha"), open_package(path):
        pass


LIBRARY: dict[str, Any] = {
    "config": {
        "alpha": 3, "architecture": "lora", "attn_matrices": ["q"], "composition_mode": "add",
        "dropout": 0.1, "dtype": None, "init_weights": "lora", "intermediate_lora": False,
        "leave_out": [], "output_lora": False, "r": 4, "selfattn_lora": True, "use_gating": False,
        "vera_b": None, "vera_d": None,
    },
    "config_id": "625403edad0bf919", "hidden_size": 6, "model_class": "LlamaForCausalLM",
    "model_name": "somebody/base", "model_type": "llama", "name": "poet",
    "version": "adapters.1.2.0",
}  # fmt: skip


def save_library(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = LIBRARY | {"config": LIBRARY["config"] | changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.q_proj"):
        a, b = factors(layer)
        tensors[f"{layer}.loras.poet.lora_A"], tensors[f"{layer}.loras.poet.lora_B"] = a, b
    save_file(tensors, folder / "adapter.safetensors")
    return folder


def test_a_lora_of_the_adapters_library_adds_alpha_over_r_times_b_a(tmp_path: Path) -> None:
    found = updates(save_library(tmp_path / "poet"))
    assert len(found) == 2
    for layer, update in found.items():
        a, b = factors(layer)
        np.testing.assert_allclose(update, np.float32(3 / 4) * (b @ a), rtol=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"architecture": "prefix_tuning"}, "'architecture' = 'prefix_tuning' is not supported: ex"),
    ({"use_gating": True}, "'use_gating' = True is not supported"),
    ({"composition_mode": "scale"}, "'composition_mode' = 'scale' is not sup"),
    ({"vera_d": 0.1}, "'vera_d' = 0.1 is not supported"),
    ({"later": 1}, "'later' = 1 is not supported"),
    ({"r": 2}, "lora_A has 4 rows for r = 2"),
    ({"r": True}, "r is True; expected an integer from 1"),
    ({"alpha": 0}, "alpha is 0; expected a number above 0"),
])  # fmt: skip
def test_what_is_not_served_of_the_library_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save_library(tmp_path / "poet", **changes)
    with pytest.raises(PackageError, match=message), open_package(folder):
        pass


def test_a_prediction_head_and_a_pickle_are_refused(tmp_path: Path) -> None:
    folder = save_library(tmp_path / "poet")
    (folder / "head_config.json").write_text("{}")
    with pytest.raises(PackageError, match="prediction head"), open_package(folder):
        pass
    (folder / "head_config.json").unlink()
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    with pytest.raises(PackageError, match="is a pickle, which can run code"), open_package(folder):
        pass


def digest_pushed(path: Path) -> str:
    with open_upload("poet", path, must_not_exist=False) as upload:
        return str(upload.header.sha256)


def test_a_push_packs_what_pack_packs(loramux: Loramux, tmp_path: Path) -> None:
    sources = [
        save_adalora(tmp_path / "ada"),
        save_kohya(tmp_path / "one.safetensors", flat="lora_"),
        save_library(tmp_path / "poet"),
    ]
    for source in sources:
        assert loramux("pack", str(source), "-o", "packed").code == 0
        assert digest_pushed(source) == hashlib.sha256(Path("packed").read_bytes()).hexdigest()


def test_a_package_is_not_packed_again_with_other_notes(loramux: Loramux, poet: Path) -> None:
    loramux("pack", "poet", "-o", "packed")
    assert loramux("pack", "packed", "-o", "again").code == 0
    assert Path("again").read_bytes() == Path("packed").read_bytes()
    done = loramux("pack", "packed", "-o", "other", "--default", "temperature=0.5")
    assert (done.code, done.errors) == (
        1, "loramux: packed is a package already; unpack it to change its notes\n"
    )  # fmt: skip


def test_what_is_folded_is_known_where_numpy_is_not() -> None:
    assert FIELDS_OF_FOLDED.keys() == FOLDED
    assert {name for name, method in METHODS.items() if method.fold is None} == FULL_RANK
