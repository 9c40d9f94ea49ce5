"""Adapters that wait for their invocation tokens, as files."""

import io
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramux_adapters import Package, PackageError, read_package
from loramux_adapters.contents import EditKind
from loramux_adapters.weights.merge import MergeOptions, merge
from loramux_server.store.check import check_package
from tests.adapters.files import CONFIG, MODULE, TENSORS, B, package, pair
from tests.parity.test_methods import lora, save
from tests.support.adapters import with_adapter
from tests.support.bases import ROOMY
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

UNSUPPORTED = "UNSUPPORTED_ADAPTER_FEATURE"
ACTIVATED = CONFIG | {"alora_invocation_tokens": [7, 9], "task_type": "CAUSAL_LM"}
BIAS = B.replace(".weight", ".bias")
REPLACED = f"base_model.model.{MODULE}.base_layer.bias"
THREE = ("F32", [3], struct.pack("<3f", 1, 2, 3))


def check(vocab_size: int, context_length: int) -> Package:
    raw = package(config=ACTIVATED)
    base = replace(
        ROOMY, layers={MODULE: (4, 3)}, vocab_size=vocab_size, context_length=context_length
    )
    return check_package(io.BytesIO(raw), len(raw), base)


def test_the_tokens_are_part_of_what_it_does() -> None:
    raw = package(config=ACTIVATED)
    assert read_package(io.BytesIO(raw), len(raw)).contents.invocation == (7, 9)
    raw = package(config=CONFIG | {"alora_invocation_tokens": None})
    assert read_package(io.BytesIO(raw), len(raw)).contents.invocation == ()


def test_only_what_can_begin_later_goes_with_it() -> None:
    raw = package({**TENSORS, BIAS: THREE}, ACTIVATED | {"lora_bias": True})
    (edit,) = read_package(io.BytesIO(raw), len(raw)).edits
    assert edit.kind is EditKind.ADDED_BIAS
    raw = package({**TENSORS, REPLACED: THREE}, ACTIVATED | {"bias": "all"})
    with pytest.raises(PackageError, match="a bias is not supported with") as caught:
        read_package(io.BytesIO(raw), len(raw))
    assert caught.value.reason == UNSUPPORTED


def test_what_stands_outside_the_layers_does_not() -> None:
    targets = {"target_modules": ["q_proj", "lm_head"]}
    raw = package({**TENSORS, **pair("lm_head", 2)}, ACTIVATED | targets)
    with pytest.raises(PackageError, match="lm_head: with alora_invocation_tokens") as caught:
        read_package(io.BytesIO(raw), len(raw))
    assert caught.value.reason == UNSUPPORTED
    raw = package({**TENSORS, **pair("lm_head", 2)}, CONFIG | targets)
    assert read_package(io.BytesIO(raw), len(raw)).contents.outer_modules


def test_tokens_that_no_prompt_can_have_are_refused() -> None:
    assert check(10, 3)
    for vocab_size, context_length, says in (
        (9, 3, "token 9; the base model has"),
        (10, 2, "2 tokens"),
    ):
        with pytest.raises(PackageError, match=says) as caught:
            check(vocab_size, context_length)
        assert caught.value.reason == "ADAPTER_BASE_MISMATCH"


def merged(*configs: dict[str, object]) -> Package:
    files = [io.BytesIO(package(config=config)) for config in configs]
    output = io.BytesIO()
    merge([(f, read_package(f, len(f.getvalue()))) for f in files], output, MergeOptions())
    return read_package(output, len(output.getvalue()))


def test_adapters_that_begin_at_different_places_are_not_merged() -> None:
    assert merged(ACTIVATED, ACTIVATED).contents.invocation == (7, 9)
    for other in (CONFIG, ACTIVATED | {"alora_invocation_tokens": [7]}):
        with pytest.raises(PackageError, match="different alora_invocation_tokens") as caught:
            merged(ACTIVATED, other)
        assert caught.value.reason == UNSUPPORTED


def test_a_base_cannot_wait_for_tokens(loramux: Loramux, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(str(tmp_path / "base"))
    config = lora(target_modules=["q_proj"], alora_invocation_tokens=[7, 9])
    save(model, config, tmp_path / "adapter", 0)
    done = loramux("merge", "adapter", "--into-base", "base", "-o", "whole")
    assert done.code == 1
    assert "alora_invocation_tokens" in done.errors
    assert not (tmp_path / "whole").exists()


def test_what_is_unpacked_is_what_peft_loads(loramux: Loramux, tmp_path: Path) -> None:
    model = tiny_model("llama")
    config = lora(target_modules=["q_proj"], alora_invocation_tokens=[7, 9])
    saved = save(model, config, tmp_path / "adapter", 0)
    assert loramux("pack", "adapter", "-o", "packed").code == 0
    for command in ("verify packed", "lint packed", "inspect packed", "unpack packed -o out"):
        assert loramux(*command.split()).code == 0, command
    prompt = {"input_ids": torch.tensor([[5, 7, 9, 4]])}
    with torch.inference_mode():
        first, second = (
            with_adapter(model, folder)(**prompt).logits for folder in (saved, tmp_path / "out")
        )
        without = model(**prompt).logits
    assert torch.equal(first, second)
    assert torch.equal(first[0, 0], without[0, 0])
    assert not torch.equal(first[0, 1], without[0, 1])
