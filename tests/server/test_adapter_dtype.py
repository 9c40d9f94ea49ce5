"""Adapters that rest in fewer bits than they were saved in, because the config says so."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.weights import read_weights
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.weight_format import ROUNDINGS, StorageFormat, WeightFormat
from tests.support.adapters import pack_source, save_adapter
from tests.support.engine import Harness
from tests.support.models import tiny_model

NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("name", NARROW)
def test_weights_are_rounded_as_torch_rounds_them(name: str) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 6e4)]
    # Halfway between two bfloat16: to the even one.
    values = np.append(values, np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32))
    info = TensorInfo("a", "F32", (len(values),), 0, values.nbytes)
    rounded = read_weights(info, values.tobytes(), ROUNDINGS[name])
    wanted = torch.from_numpy(values).to(NARROW[name])
    assert torch.equal(torch.from_numpy(rounded).view(NARROW[name]), wanted)


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize("name", NARROW)
def test_a_rounded_adapter_answers_as_one_that_was_saved_so(
    tmp_path: Path, name: str, kernels: str
) -> None:
    model = tiny_model("llama")
    folder = save_adapter(model, tmp_path / "wide", seed=1, r=8, target_modules="all-linear")
    wide = pack_source(folder, tmp_path / "wide.package")
    file = folder / "adapter_model.safetensors"
    save_file({key: value.to(NARROW[name]) for key, value in load_file(file).items()}, file)
    narrow = pack_source(folder, tmp_path / "narrow.package")
    asked = {"rounded": (wide, name), "saved": (narrow, "auto"), "exact": (wide, "auto")}
    answers = {}
    for label, (source, adapter_dtype) in asked.items():
        harness = Harness(copy.deepcopy(model), kernels=kernels, adapter_dtype=adapter_dtype)
        request = harness.submit([5, 6, 7, 8], source, max_tokens=12, num_logprobs=0)
        harness.run()
        answers[label] = [(token.token, token.logprobs) for token in harness.tokens[request]]
    assert answers["rounded"] == answers["saved"]
    assert answers["rounded"] != answers["exact"]


def test_twice_as_many_fit(tmp_path: Path) -> None:
    model = tiny_model("llama")
    sources = [
        pack_source(
            save_adapter(model, tmp_path / str(i), seed=i, r=16, target_modules=["q_proj"]),
            tmp_path / f"{i}.package",
        )
        for i in range(2)
    ]
    resident = {}
    for adapter_dtype in ROUNDINGS:
        harness = Harness(copy.deepcopy(model), rows=16, adapter_dtype=adapter_dtype)
        for source in sources:
            harness.submit([5, 6, 7], source)
        harness.run()
        resident[adapter_dtype] = harness.reports[-1].stats.device.resident
    assert resident == {"auto": 1, "bfloat16": 2, "float16": 2}


def test_an_adapter_of_16_bits_stays_as_it_is() -> None:
    source = AdapterSource("sha256:0", "path", rank=8, num_bytes=100, item_bytes=2)
    assert all(
        source.as_stored(StorageFormat(WeightFormat[form])) is source
        for form in ("FLOAT32", "BFLOAT16")
    )
