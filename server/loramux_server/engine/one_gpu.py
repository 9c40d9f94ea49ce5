"""Which GPU a process sees."""

import os

import msgspec
import torch

from loramux_server.wire.engine_config import EngineConfig

_VARIABLE = "CUDA_VISIBLE_DEVICES"


def see_one_gpu(config: EngineConfig) -> EngineConfig:
    """Return the config of a process that sees no GPU but the one that `config` names.

    Streams, events and launches are of the first GPU that a process sees, where nothing else is
    said. It has to be called before CUDA is asked for anything, and changes nothing where no number
    is named.
    """
    kind, _, number = config.device.partition(":")
    if kind != "cuda" or not number.isdecimal() or config.tensor_parallel > 1:
        return config
    if int(number) >= torch.cuda.device_count():
        return config  # which is refused by its name
    seen = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = number if seen is None else seen.split(",")[int(number)]
    return msgspec.structs.replace(config, device="cuda")
