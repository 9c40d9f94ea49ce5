"""Restricts a process to its GPU."""

import os

import msgspec
import torch

from loramux_server.wire.engine_config import EngineConfig

_VARIABLE = "CUDA_VISIBLE_DEVICES"


def restrict_to_one_gpu(config: EngineConfig) -> EngineConfig:
    """Make only the GPU that `config` names visible, and return the config to use then.

    By default, streams, events and launches go to the first visible GPU. Must be called before CUDA
    is used; changes nothing if `config` names no GPU number.
    """
    kind, _, number = config.device.partition(":")
    if kind != "cuda" or not number.isdecimal() or config.tensor_parallel > 1:
        return config
    seen = os.environ.get(_VARIABLE)
    there = None if seen is None else seen.split(",")
    if there is not None and int(number) >= len(there):
        return config  # it is refused later, by its name
    # Set before the first query: without NVML, as in a compute-only container, the driver answers
    # it, and keeps the devices that it sees then.
    os.environ[_VARIABLE] = number if there is None else there[int(number)]
    if torch.cuda.device_count() == 1:
        return msgspec.structs.replace(config, device="cuda")
    if seen is None:
        del os.environ[_VARIABLE]
    else:
        os.environ[_VARIABLE] = seen
    return config
