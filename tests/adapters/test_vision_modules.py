"""Adapters that change what sees images, as files: held against a base, and added to it."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.support.adapters import pack_source, save_adapter, with_adapter
from tests.support.command_line import Loramux
from tests.support.vision import save_vision_base

TOWER = "vision_tower."


@pytest.mark.parametrize(
    ("kind", "level"), [("qwen2.5-vl", ""), ("llava", ""), ("llava", "vision_model.")]
)
def test_it_goes_into_the_weights_of_the_base(
    kind: str, level: str, loramux: Loramux, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    model = save_vision_base(kind, base)
    weights = load_file(base / "model.safetensors")
    renamed = {name.replace(TOWER, TOWER + level): weight for name, weight in weights.items()}
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    folder = save_adapter(
        copy.deepcopy(model), tmp_path / "a", seed=1, r=4, target_modules="all-linear"
    )
    package = tmp_path / "a.pkg"
    pack_source(folder, package)
    assert loramux("verify", str(package), "--base", str(base)).code == 0
    merged = tmp_path / "merged"
    assert loramux("merge", str(package), "--into-base", str(base), "-o", str(merged)).code == 0
    ours = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).state_dict()
    wanted = with_adapter(model, folder).merge_and_unload().state_dict()  # type: ignore[operator]
    torch.testing.assert_close(ours, wanted)
