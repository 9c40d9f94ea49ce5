"""Tensors out of pickles, and nothing else out of them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command_line import Loramux


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._target),)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_what_was_pickled_packs_to_the_same_bytes(
    loramux: Loramux, poet: Path, tmp_path: Path, is_zip: bool
) -> None:
    assert loramux("pack", str(poet), "-o", "wanted").code == 0
    old = tmp_path / "old"
    shutil.copytree(poet, old)
    tensors = load_file(old / "adapter_model.safetensors")
    (old / "adapter_model.safetensors").unlink()
    # Some are views: PEFT saved what state_dict() gives.
    stacked = {name: torch.stack([tensor, tensor])[1] for name, tensor in tensors.items()}
    torch.save(stacked, old / "adapter_model.bin", _use_new_zipfile_serialization=is_zip)
    refused = loramux("pack", str(old), "-o", "no")
    assert f"`loramux convert --from-bin {old} -o NAME.safetensors`" in refused.errors
    done = loramux("convert", "--from-bin", str(old), "-o", "found", "--json")
    assert done.code == 0, done.errors
    assert Path("found").read_bytes() == Path("wanted").read_bytes()
    assert json.loads(done.output)["modules"] == []


def test_what_is_no_tensor_is_refused_and_does_nothing(
    loramux: Loramux, poet: Path, tmp_path: Path
) -> None:
    (poet / "adapter_model.safetensors").unlink()
    for content, why in (
        ({"a": Hostile(tmp_path / "made")}, "it references posix.mkdir, which is not a tensor"),
        ({"a": "text"}, "'a' is a str, not a tensor"),
    ):
        torch.save(content, poet / "adapter_model.bin")
        done = loramux("convert", "--from-bin", str(poet), "-o", "found")
        assert (done.code, done.errors) == (1, f"loramux: adapter_model.bin is rejected: {why}\n")
    assert not (tmp_path / "made").exists() and not Path("found").exists()
    (poet / "adapter_model.bin").unlink()
    done = loramux("convert", "--from-bin", str(poet), "-o", "found")
    assert "has none of adapter_model.bin, " in done.errors
