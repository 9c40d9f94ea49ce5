"""EngineConfig -> the base model, or this process's shard of it."""

from pathlib import Path

import torch

from loramux_server.engine.team import Team
from loramux_server.kernels.shard_group import join
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.lora.shard import Shard
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from loramux_server.models.sharded import shard_model
from loramux_server.wire.engine_config import EngineConfig


def load_model(config: EngineConfig, team: Team | None = None) -> BaseModel:
    """Load the base model, or this process's shard of it if it leads a `team`.

    Raises:
        UnservableModelError: The model cannot be loaded, is of a kind that is not served, or cannot
            be sharded over so many processes.
    """
    if team is None:
        return _load(config, config.device)
    with team.loading():
        model = load_whole(config, team.shard)
    with team.dividing():
        return divide(model, config, team.shard, team.meeting)


def load_whole(config: EngineConfig, shard: Shard) -> BaseModel:
    """Load the whole base model into host memory, from which `shard` is taken later.

    So a device needs memory for its shard only.

    Raises:
        UnservableModelError: It cannot be loaded or served, or has no device for that process.
    """
    return _load(config, str(device_of(config, shard)), stays_on_host=True)


def _load(config: EngineConfig, device: str, *, stays_on_host: bool = False) -> BaseModel:
    images_off_reason = ""
    if not config.max_images:
        images_off_reason = "images are turned off (--max-images 0)"
    elif stays_on_host:  # commands to followers carry no images
        images_off_reason = "images are not supported with tensor_parallel above 1"
    return load_base_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=device,
        kernels=config.kernels,
        quantization=Quantization(config.quantization),
        generation_config=config.generation_config,
        stays_on_host=stays_on_host,
        serves_images=not images_off_reason,
        images_off_reason=images_off_reason,
    )


def divide(model: BaseModel, config: EngineConfig, shard: Shard, meeting: Path) -> BaseModel:
    """Return `shard` of `model` on its device, together with the other processes at `meeting`.

    Raises:
        UnservableModelError: The model cannot be sharded like this.
    """
    device = device_of(config, shard)
    join(shard, device, meeting)
    return shard_model(model, shard, device)


def device_of(config: EngineConfig, shard: Shard) -> torch.device:
    """Return the device of the process with `shard`: a GPU of its own, or the CPU.

    Raises:
        UnservableModelError: There are too few GPUs, or the config names a single one.
    """
    name = config.device
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UnservableModelError(
            f"device is {name!r}, but {shard.count} processes take one GPU each, starting with the "
            "first; expected auto, cuda or cpu"
        )
    if (available := torch.cuda.device_count()) < shard.count:
        raise UnservableModelError(
            f"tensor_parallel is {shard.count}, but torch sees {available} GPUs; each process "
            "takes one"
        )
    return torch.device("cuda", shard.index)
