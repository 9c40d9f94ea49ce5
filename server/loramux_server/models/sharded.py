"""Tensor parallelism: a base model of which each process holds a shard; see `lora.shard`."""

from dataclasses import replace

import torch

from loramux_server.kernels.backend import DEFINITIONS
from loramux_server.kernels.shard_group import sharded
from loramux_server.lora.shard import Shard
from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError


def shard_model(model: BaseModel, shard: Shard, device: torch.device | None = None) -> BaseModel:
    """Return the part of `model` that belongs to `shard`; `model` is changed in place.

    Embeddings, norms and the output layer stay whole. The processes of the other shards must do the
    same at the same time: at the end, all of them check their joint results.

    Args:
        model: The whole model, prepared.
        shard: The part to keep.
        device: Where to move it; not moved by default.

    Raises:
        UnservableModelError: Its layers cannot be sharded.
    """
    if model.recurrent.states:
        raise UnservableModelError(
            f"tensor_parallel is {shard.count}, but the recurrent layers of {model.architecture} "
            "cannot be sharded; expected 1"
        )
    if model.stack is None:
        raise UnservableModelError(
            f"tensor_parallel is {shard.count}, but only layers with the same parts as those of "
            f"Llama, Mistral and Qwen can be sharded, and those of {model.architecture} in "
            f"{str(model.dtype).removeprefix('torch.')} are not recognized as such; expected 1"
        )
    try:
        model.stack.keep_shard(shard)
    except ValueError as error:
        raise UnservableModelError(f"{model.architecture}: {error}") from None
    if device is not None and device != model.device:
        model = moved(model, device)
    model.step.backend = sharded(DEFINITIONS)
    difference = model.check.difference(model.stack)
    if not difference <= model.check.tolerance:  # so that NaN is refused
        raise UnservableModelError(
            f"{model.architecture} computes different results in {shard.count} processes than in "
            f"one: logits differ by {difference:.2g} of their spread, and rounding explains at "
            f"most {model.check.tolerance:.2g}"
        )
    return replace(model, shard=shard)


def moved(model: BaseModel, device: torch.device) -> BaseModel:
    """Return `model`, with fused layers and not attached yet, on `device`."""
    assert model.stack is not None
    model.module.to(device)
    model.stack.move(device)
    for group in model.groups:
        group.move(device)
    if model.output:
        model.output.move(device)
    model.check.move(device)
    model.step.device = device
    return replace(model, device=device)
