"""Bases saved in FP8, GPTQ, AWQ or by compressed-tensors: dequantised when they are loaded."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux_server.kernels.resting import Quantization
from loramux_server.models.decoder_model import prepare
from loramux_server.models.dequantize import layout
from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from tests.parity.test_peft import cases, check
from tests.support.dequantized import METHODS, save_quantised
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_model_with_the_numbers_that_were_saved(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_NUMBERS", 32 * 32)  # so that they come in several parts
    model = tiny_model("llama-bias")
    folder = save_quantised(model, tmp_path, METHODS[name])
    with caplog.at_level(logging.INFO, "loramux_server"):
        base = load_base_model(str(folder), device="cpu")
    assert base.dtype == torch.float32
    # Of so small a model it has every number.
    assert base.fingerprint == prepare(model).fingerprint
    (line,) = (record.getMessage() for record in caplog.records if "saved in" in record.msg)
    dtype = str(METHODS[name].dtype).removeprefix("torch.")
    assert f"was saved in {METHODS[name].config['quant_method']}" in line
    assert f"GB); its weights are dequantised to {dtype} (" in line
