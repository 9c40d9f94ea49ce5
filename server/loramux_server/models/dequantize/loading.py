"""A base saved quantized -> a model with plain weights, loaded by transformers."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

from loramux_adapters.base import CONV1D_MODELS
from loramux_server.models.dequantize.layout import Slice
from loramux_server.models.dequantize.method import SavedMethod
from loramux_server.models.dequantize.state import dequantized_state
from loramux_server.models.saved_weights import SavedWeights

_log = logging.getLogger(__name__)
_BITS = {"BF16": 16, "F16": 16, "I16": 16, "F32": 32, "I32": 32, "F64": 64, "I64": 64}
"""Bits of the dtypes that do not have 8."""


def held_dtype(config: PreTrainedConfig, method: SavedMethod) -> torch.dtype:
    """Return the dtype that weights are dequantized to: the one in which the base computes.

    It is the same on all devices, so that a base has one fingerprint.
    """
    for each in (config, config.get_text_config()):
        if isinstance(each.dtype, torch.dtype) and each.dtype.is_floating_point:
            return each.dtype
    return method.dtype


def load_dequantized(
    loads: Any,  # noqa: ANN401
    path: str,
    config: PreTrainedConfig,
    method: SavedMethod,
    *,
    device: torch.device,
    options: Mapping[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the base in folder or hub id `path`, whose weights were quantized by `method`.

    At most a part of one weight is held in another format at a time.

    Args:
        loads: The class of transformers that loads such models.
        path: The folder or hub id.
        config: Its config.
        method: How it was quantized.
        device: Where the weights go. On a GPU they are dequantized there, without ever being on the
            host as a whole, if accelerate is installed.
        options: Other arguments for transformers, including the `dtype` of the model.

    Returns:
        The model, and transformers' loading info.

    Raises:
        ValueError: Weights are missing, or have shapes that do not fit.
        OSError: There are no weights.
    """
    if config.model_type in CONV1D_MODELS:
        raise ValueError(
            f"quantized weights of models of type {config.model_type} are not supported, because "
            "they are transposed: serve the unquantized model with --quantization"
        )
    options = dict(options)
    if device.type != "cpu" and is_accelerate_available():
        options["device_map"] = {"": device}
    else:
        device = torch.device("cpu")
    dtype = held_dtype(config, method)
    saved = SavedWeights(path).slices()
    with torch.device("meta"):
        empty = loads.from_config(_plain(config), trust_remote_code=False)
    module, loading = type(empty).from_pretrained(
        None,
        config=empty.config,
        state_dict=dequantized_state(saved, method, dtype, device),
        generation_config=_generation_config(path),
        output_loading_info=True,
        **options,
    )
    numbers = sum(parameter.numel() for parameter in module.parameters())
    _log.info(
        "%s was saved in %s (%.2f GB); its weights are dequantized to %s (%.2f GB)",
        path, method.title, _size(saved) / 1e9, str(dtype).removeprefix("torch."),
        numbers * dtype.itemsize / 1e9,
    )  # fmt: skip
    return module, loading


def _size(saved: Mapping[str, Slice]) -> int:
    """Return the total size of the saved tensors in bytes."""
    return sum(
        torch.Size(part.get_shape()).numel() * _BITS.get(part.get_dtype(), 8) // 8
        for part in saved.values()
    )


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of `config` without its quantization."""
    config = copy.deepcopy(config)
    for each in (config, config.get_text_config()):
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    return config


def _generation_config(path: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # transformers derives one from the config
        return None
