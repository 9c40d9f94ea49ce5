"""Linear layers whose weights rest in fewer bits than they are computed with.

transformers makes them, with torchao (a weight that is a tensor of a class of its own) or with
bitsandbytes (a layer of a class of its own). Neither is imported here unless it is asked for.
What was saved in MXFP4, as the experts of gpt-oss are, is dequantised by transformers while it is
loaded, and what was saved in other formats by `models/dequantize`.
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers import Mxfp4Config, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from loramux_adapters.extras import install_command
from loramux_server.kernels.resting import Quantization

_PLAIN_FORWARDS = (nn.Linear.forward, Conv1D.forward)
_log = logging.getLogger(__name__)
_METHODS = ("torchao", "bitsandbytes")
MXFP4 = "mxfp4"
_FP8_CAPABILITY = (8, 9)


def is_linear(layer: nn.Module) -> bool:
    """Return whether `layer` is a linear layer, plain or quantised, and nothing else."""
    # A subclass may compute something else, as the routers of some models do.
    return type(layer).forward in _PLAIN_FORWARDS or is_quantized(layer)


def is_quantized(layer: nn.Module) -> bool:
    """Return whether `layer` is a linear layer whose weights only its own forward understands."""
    if type(layer).forward in _PLAIN_FORWARDS:
        return type(layer.weight) not in (nn.Parameter, torch.Tensor)
    return isinstance(layer, nn.Linear) and any(
        kind.__module__.partition(".")[0] in _METHODS for kind in type(layer).__mro__
    )


def rounds_inputs(module: nn.Module) -> bool:
    """Return whether a layer of `module` rounds what it is given to 8 bits as well."""
    return any(
        is_quantized(layer)
        and (
            layer.weight.dtype is torch.int8  # of bitsandbytes: LLM.int8()
            or getattr(layer.weight, "act_quant_kwargs", None) is not None  # of torchao
        )
        for layer in module.modules()
    )


def mxfp4_config(path: str) -> Mxfp4Config:
    """Return what lets transformers dequantise the weights in `path` while it loads them."""
    _log.info(
        "%s is saved in MXFP4, for which there are no kernels: its 4-bit weights are dequantised, "
        "exactly, to 16 or 32 bits",
        path,
    )
    return Mxfp4Config(dequantize=True)


def hold_dequantised(module: nn.Module, dtype: torch.dtype | str) -> None:
    """Bring what was dequantised to `dtype`, unless that is "auto": it may have come as bfloat16.

    transformers 5.17 leaves it so, whatever it is asked for.
    """
    if not isinstance(dtype, torch.dtype):
        return
    for parameter in module.parameters():
        if parameter.dtype is torch.bfloat16:
            parameter.data = parameter.data.to(dtype)


def torchao_config(quantization: Quantization, device: torch.device) -> TorchAoConfig:
    """Return what lets transformers round the weights of linear layers while it loads them.

    Raises:
        ValueError: They are not rounded so on `device`, or torchao is not installed.
    """
    if quantization is Quantization.FP8 and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _FP8_CAPABILITY:
            raise ValueError(
                f"quantization 'fp8' needs a GPU of compute capability 8.9 or later, and that of "
                f"{device} is {capability[0]}.{capability[1]}; int8 would run there"
            )
    try:
        from torchao import quantization as torchao
    except ImportError as error:
        raise ValueError(
            f"quantization {str(quantization)!r} without the kernels of a CPU needs torchao "
            f"({install_command('quantized')}): {error}"
        ) from None
    kinds: dict[Quantization, Any] = {
        Quantization.INT8: torchao.Int8WeightOnlyConfig,
        Quantization.FP8: torchao.Float8WeightOnlyConfig,
    }
    if quantization not in kinds:
        raise ValueError(
            f"quantization {str(quantization)!r} is for the kernels of a CPU; others take "
            f"{' or '.join(kinds)}"
        )
    return TorchAoConfig(kinds[quantization]())


def check_quantized(module: PreTrainedModel, quantization: Quantization) -> None:
    """Demand that the quantised layers of `module` compute in its dtype, if it has any.

    Raises:
        ValueError: They do not; or there are none, and `quantization` asked for them.
    """
    if getattr(module.config, "quantization_config", None) is None:
        return
    layers = {name: layer for name, layer in module.named_modules() if is_quantized(layer)}
    if not layers and quantization is not Quantization.NONE:
        raise ValueError(
            f"quantization {str(quantization)!r} changes nothing: torchao rounds layers of the "
            "class Linear, and it has none but the one that makes logits"
        )
    for name, layer in layers.items():
        dtype = layer.weight.dtype
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype != module.dtype:
            raise ValueError(
                f"layer {name} was quantised to compute in {_name(dtype)}, and dtype is "
                f"{_name(module.dtype)}; auto or {_name(dtype)} would be right"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
