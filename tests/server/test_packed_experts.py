"""Changes of experts in memory: no more than is reckoned with when an adapter is registered."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loramux_adapters.package import digest_of, read_package
from loramux_adapters.packing import pack
from loramux_server.lora.edits import Edits, num_edit_bytes
from loramux_server.lora.packed import load_packed
from loramux_server.models.base_layers import BaseLayers
from loramux_server.models.decoder_model import prepare
from tests.support.models import tiny_model

COUNT, WIDTH, INNER = 4, 32, 24
EXPERTS = "base_model.model.model.layers.0.mlp.experts"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base() -> BaseLayers:
    return BaseLayers(prepare(tiny_model("qwen3-moe")))


def pair(name: str, rank: int, *, dtype: torch.dtype = torch.float32) -> Tensors:
    """Return the change of an expert's matrix `name`, such as `0.up_proj`, or of all last ones."""
    is_first = name.endswith(("gate_proj", "up_proj"))
    width_in, width_out = (WIDTH, INNER) if is_first else (INNER, WIDTH)
    path = ".".join(filter(None, (EXPERTS, name)))
    return {
        f"{path}.lora_A.weight": torch.full((rank, width_in), 0.5, dtype=dtype),
        f"{path}.lora_B.weight": torch.full((width_out, rank), 0.25),
    }


def load(base: BaseLayers, folder: Path, tensors: Tensors, **fields: object) -> tuple[Edits, int]:
    """Return what an adapter does beside layers, and the bytes that are reckoned with for it."""
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    path = folder / "package"
    with path.open("w+b") as file:
        pack(folder, file)
        package = read_package(file, file.tell()).named_for(base.places, base.experts)
        digest = digest_of(file)
    edits = load_packed(path, digest, base).edits
    assert edits is not None
    return edits, num_edit_bytes(package)


ALL: dict[str, object] = {"target_modules": [], "target_parameters": ["experts.down_proj"]}
LAYERS: dict[str, object] = {"target_modules": ["gate_proj", "up_proj", "down_proj"]}


@pytest.mark.parametrize(("tensors", "fields", "size"), [
    # Every expert has as many rows as the one that is changed.
    (pair("1.down_proj", 6), LAYERS | {"r": 6}, 4 * COUNT * 6 * (INNER + WIDTH)),
    # Side by side, each with rows of its own.
    (
        pair("1.gate_proj", 2) | pair("1.up_proj", 2) | pair("2.up_proj", 2),
        LAYERS | {"r": 2},
        4 * COUNT * 4 * (WIDTH + 2 * INNER),
    ),
    # One of two formats rests in float32.
    (pair("", 2 * COUNT, dtype=torch.bfloat16), ALL | {"r": 2}, 4 * COUNT * 2 * (INNER + WIDTH)),
], ids=["one", "side by side", "two formats"])  # fmt: skip
def test_experts_take_what_is_reckoned_with(
    tensors: Tensors, fields: dict[str, object], size: int, base: BaseLayers, tmp_path: Path
) -> None:
    edits, reckoned = load(base, tmp_path, tensors, **fields)
    assert edits.num_bytes == size == reckoned


def test_scales_far_apart_stay_numbers(base: BaseLayers, tmp_path: Path) -> None:
    tensors = pair("0.down_proj", 2) | pair("1.down_proj", 2)
    tiny = {"experts.0.down_proj": 1e-40}
    edits, _ = load(base, tmp_path, tensors, **LAYERS, r=2, lora_alpha=8, alpha_pattern=tiny)
    (change,) = edits.experts.values()
    assert change.last is not None
    assert change.last.b_RN.isfinite().all()
    b_ERN = change.last.scale * change.last.b_RN.view(COUNT, -1, WIDTH)
    assert b_ERN[0].max() < 1e-30
    assert torch.equal(b_ERN[1, :2], torch.ones(2, WIDTH))
