"""A base whose experts were saved in MXFP4: they are dequantized when it is loaded."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux_server.kernels.weight_storage import Quantization
from loramux_server.models.decoder_model import prepare
from loramux_server.models.loading import load_base_model
from loramux_server.models.quantized import hold_dequantized
from loramux_server.models.servable import UnservableModelError
from tests.parity.test_gpt_oss import configs
from tests.parity.test_methods import TOLERANCE, cases
from tests.parity.test_peft import check
from tests.support.engine import Harness
from tests.support.models import VOCAB
from tests.support.mxfp4 import save_mxfp4
from tests.support.sinks import gpt_oss

WIDTHS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 32}
"""Multiples of a block, which has 32 numbers."""


def test_it_equals_a_model_that_was_given_the_decoded_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = gpt_oss(**WIDTHS)
    plain = prepare(gpt_oss(**WIDTHS)).fingerprint
    folder = save_mxfp4(model, tmp_path / "base")
    requests = cases(model, tmp_path, configs())
    with caplog.at_level(logging.INFO):
        base = load_base_model(str(folder), device="cpu")
    assert "saved in MXFP4" in caplog.text
    assert base.dtype == torch.float32
    assert base.fingerprint == prepare(model).fingerprint != plain
    harness = Harness(base, kernels="cpu", rows=512, num_blocks=200)
    for case in requests:
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case, TOLERANCE)


def test_it_may_be_served_in_16_bits(tmp_path: Path) -> None:
    model = gpt_oss(torch.bfloat16, **WIDTHS)
    folder = save_mxfp4(model, tmp_path)
    base = load_base_model(str(folder), device="cpu", dtype="bfloat16")
    assert base.dtype == torch.bfloat16
    assert base.fingerprint == prepare(model).fingerprint


def test_what_came_in_16_bits_is_held_as_the_rest() -> None:
    model = gpt_oss(**WIDTHS)
    experts = model.model.layers[0].mlp.experts
    whole = experts.down_proj.detach().clone().bfloat16()
    experts.down_proj.data = whole
    hold_dequantized(model, "auto")
    assert experts.down_proj.dtype == torch.bfloat16
    hold_dequantized(model, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(experts.down_proj, whole.float())


def test_it_is_not_quantized_twice(tmp_path: Path) -> None:
    folder = save_mxfp4(gpt_oss(**WIDTHS), tmp_path)
    with pytest.raises(UnservableModelError, match="must be 'none', got 'int8'"):
        load_base_model(str(folder), device="cpu", quantization=Quantization.INT8)


def test_a_folder_that_lacks_factors_is_refused(tmp_path: Path) -> None:
    folder = save_mxfp4(gpt_oss(**WIDTHS), tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnservableModelError, match=r"cannot load a base model .*conversion"):
        load_base_model(str(folder), device="cpu")
