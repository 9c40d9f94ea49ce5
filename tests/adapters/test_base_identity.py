"""Whether an adapter says that it was made for another base model."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loramux_adapters import open_package
from loramux_adapters.base_identity import BaseIdentity, identifying_name
from tests.support.command_line import Loramux

LLAMA = "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(("name", "reported"), [
    (LLAMA, "Llama-3.1-8B"),
    ("org/base", "base"),
    ("/srv/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f", "Llama-3.1-8B"),
    ("./Qwen2.5-0.5B-Instruct/", "Qwen2.5-0.5B-Instruct"),
    ("/data/gemma-2-9b-it", "gemma-2-9b-it"),
    ("Mixtral-8x7B", "Mixtral-8x7B"),
    ("./base", ""), ("base", ""), ("llama", ""), ("gpt2", ""), ("/models/v2", ""), ("", ""),
    ("models/llama", ""), ("out/checkpoint-500", ""), ("../org/base", ""), ("a/b/c", ""),
])  # fmt: skip
def test_a_name_identifies_a_model_or_not(name: str, reported: str) -> None:
    assert identifying_name(name) == reported


@pytest.mark.parametrize(("named", "served", "differs"), [
    (LLAMA, "Qwen/Qwen2.5-7B", True),
    (LLAMA, "meta-llama/Llama-3.1-8B-Instruct", True),
    (LLAMA, "./Llama-3.1-70B", True),
    (LLAMA, "mirror/llama-3.1-8b", False),
    (LLAMA, "./Llama-3.1-8B", False),
    ("unsloth/Meta-Llama-3.1-8B-unsloth-bnb-4bit", LLAMA, False),
    (LLAMA, "./base", False),
    (LLAMA, "", False),
    ("", LLAMA, False),
    ("./base", "org/llama", False),
])  # fmt: skip
def test_names_count_where_both_identify_a_model(
    poet: Path, named: str, served: str, differs: bool
) -> None:
    config = json.loads((poet / "adapter_config.json").read_text())
    (poet / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": named})
    )
    with open_package(poet) as (_, package):
        said = BaseIdentity(served).other(package)
    last = served.rpartition("/")[2]
    reported = f"its config names the base model {named!r}, but this one is {last!r}"
    assert said == (reported if differs else "")


def test_a_fingerprint_counts_before_names(loramux: Loramux, poet: Path, tmp_path: Path) -> None:
    for folder, number in (("Tiny-1B", 1.0), ("Other-2B", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"model_type": "llama"}')
        weights = {"model.embed_tokens.weight": np.full((2, 2), number, np.float32)}
        save_file(weights, tmp_path / folder / "model.safetensors")
    assert loramux("pack", "poet", "--base", str(tmp_path / "Tiny-1B")).code == 0
    with open_package(Path("poet.safetensors")) as (_, package):
        assert BaseIdentity(str(tmp_path / "Tiny-1B")).other(package) == ""
        said = BaseIdentity(str(tmp_path / "Other-2B")).other(package)
        assert said == "the fingerprint in its manifest has different weights"
        # A hub id has no files to look at.
        assert "'org/base', but this one is 'x'" in BaseIdentity("org/x").other(package)
    with open_package(poet) as (_, package):
        assert "is 'Tiny-1B'" in BaseIdentity(str(tmp_path / "Tiny-1B")).other(package)
