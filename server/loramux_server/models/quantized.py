"""Linear layers whose weights are stored in fewer bits than they compute in.

transformers creates them, with torchao (a tensor subclass as weight) or with bitsandbytes (a layer
subclass). Neither is imported here unless it is used. MXFP4, as in gpt-oss' experts, is dequantized
by transformers while it is loaded; other saved formats by `models/dequantize`.
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers import Mxfp4Config, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from loramux_adapters.extras import install_command
from loramux_server.kernels.weight_storage import Quantization

_PLAIN_FORWARDS = (nn.Linear.forward, Conv1D.forward)
_log = logging.getLogger(__name__)
_METHODS = ("torchao", "bitsandbytes")
MXFP4 = "mxfp4"
_FP8_CAPABILITY = (8, 9)


def is_linear(layer: nn.Module) -> bool:
    """Return whether `layer` is a linear layer, plain or quantized, and nothing else."""
    # A subclass may compute something else, such as some models' routers.
    return type(layer).forward in _PLAIN_FORWARDS or is_quantized(layer)


def is_quantized(layer: nn.Module) -> bool:
    """Return whether `layer` is a linear layer whose weight only its own forward can use."""
    if type(layer).forward in _PLAIN_FORWARDS:
        return type(layer.weight) not in (nn.Parameter, torch.Tensor)
    return isinstance(layer, nn.Linear) and any(
        kind.__module__.partition(".")[0] in _METHODS for kind in type(layer).__mro__
    )


def rounds_inputs(module: nn.Module) -> bool:
    """Return whether a layer of `module` also rounds its input to 8 bits."""
    return any(
        is_quantized(layer)
        and (
            layer.weight.dtype is torch.int8  # bitsandbytes: LLM.int8()
            or getattr(layer.weight, "act_quant_kwargs", None) is not None  # torchao
        )
        for layer in module.modules()
    )


def mxfp4_config(path: str) -> Mxfp4Config:
    """Return the config that makes transformers dequantize the weights in `path` while loading."""
    _log.info(
        "%s is saved in MXFP4, for which there are no kernels: its 4-bit weights are dequantized "
        "to 16 or 32 bits, without loss",
        path,
    )
    return Mxfp4Config(dequantize=True)


def hold_dequantized(module: nn.Module, dtype: torch.dtype | str) -> None:
    """Convert what was dequantized to `dtype`, unless that is "auto": it may still be bfloat16.

    transformers 5.17 leaves it so, whatever dtype was requested.
    """
    if not isinstance(dtype, torch.dtype):
        return
    for parameter in module.parameters():
        if parameter.dtype is torch.bfloat16:
            parameter.data = parameter.data.to(dtype)


def torchao_config(quantization: Quantization, device: torch.device) -> TorchAoConfig:
    """Return the config that makes transformers quantize linear layers while loading.

    Raises:
        ValueError: The quantization is not supported on `device` or by torchao, or torchao is not
            installed.
    """
    if quantization is Quantization.FP8 and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _FP8_CAPABILITY:
            raise ValueError(
                f"quantization 'fp8' needs a GPU of compute capability 8.9 or later; {device} has "
                f"{capability[0]}.{capability[1]}, which supports int8"
            )
    try:
        from torchao import quantization as torchao
    except ImportError as error:
        raise ValueError(
            f"quantization {str(quantization)!r} without kernels 'cpu' needs torchao "
            f"({install_command('quantized')}): {error}"
        ) from None
    kinds: dict[Quantization, Any] = {
        Quantization.INT8: torchao.Int8WeightOnlyConfig,
        Quantization.FP8: torchao.Float8WeightOnlyConfig,
    }
    if quantization not in kinds:
        raise ValueError(
            f"quantization {str(quantization)!r} needs kernels 'cpu'; others support "
            f"{' or '.join(kinds)}"
        )
    return TorchAoConfig(kinds[quantization]())


def check_quantized(module: PreTrainedModel, quantization: Quantization) -> None:
    """Check that the quantized layers of `module`, if it has any, compute in its dtype.

    Raises:
        ValueError: They do not; or there are none, although `quantization` asks for them.
    """
    if getattr(module.config, "quantization_config", None) is None:
        return
    layers = {name: layer for name, layer in module.named_modules() if is_quantized(layer)}
    if not layers and quantization is not Quantization.NONE:
        raise ValueError(
            f"quantization {str(quantization)!r} has no effect: torchao quantizes layers of class "
            "Linear, and the model has none except its output layer"
        )
    for name, layer in layers.items():
        dtype = layer.weight.dtype
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype != module.dtype:
            raise ValueError(
                f"layer {name} was quantized to compute in {_name(dtype)}, but dtype is "
                f"{_name(module.dtype)}; expected auto or {_name(dtype)}"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
