"""Bases whose linear layers are quantized: by torchao, by bitsandbytes, or by a stand-in for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    TorchAoConfig,
)
from transformers.pytorch_utils import Conv1D


class Linear8bitLt(nn.Linear):
    """What bitsandbytes has in place of a linear layer: weights of int8 and factors beside them."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        weight_NK = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        outputs, width = weight_NK.shape
        super().__init__(width, outputs, bias=layer.bias is not None)
        scale_N = weight_NK.detach().abs().amax(1) / 127
        rounded_NK = (weight_NK / scale_N[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(rounded_NK, requires_grad=False)
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.register_buffer("SCB", scale_N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.SCB, torch.Tensor)
        weight_NK = self.weight.to(x.dtype) * self.SCB.to(x.dtype)[:, None]
        return nn.functional.linear(x, weight_NK, self.bias)


Linear8bitLt.__module__ = "bitsandbytes.nn.modules"


def with_stand_ins(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model` with all layers but the output quantized, as bitsandbytes does it."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D) and layer is not model.get_output_embeddings():
            model.set_submodule(name, Linear8bitLt(layer))
    return model


def by_torchao(name: str) -> Callable[[], TorchAoConfig]:
    """Return what makes transformers' config for the one of torchao called `name`."""

    def make() -> TorchAoConfig:
        torchao = pytest.importorskip("torchao.quantization")
        return TorchAoConfig(getattr(torchao, name)())

    return make


def by_bitsandbytes(bits: int) -> Callable[[], BitsAndBytesConfig]:
    """Return what makes transformers' config for weights of 4 or 8 bits."""

    def make() -> BitsAndBytesConfig:
        pytest.importorskip("bitsandbytes")
        return BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)

    return make


def save_quantized(
    model: PreTrainedModel,
    folder: Path,
    config: TorchAoConfig | BitsAndBytesConfig,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Quantize `model` as `config` says, and save it to a folder within `folder`."""
    model.save_pretrained(str(folder / "plain"))
    quantized = AutoModelForCausalLM.from_pretrained(
        str(folder / "plain"), dtype=dtype, quantization_config=config
    )
    quantized.save_pretrained(str(folder / "quantized"))
    return folder / "quantized"
