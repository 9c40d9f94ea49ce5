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
    seen = os.environ.get(_VARIABLE)
    there = None if seen is None else seen.split(",")
    if there is not None and int(number) >= len(there):
        return config  # which is refused by its name
    # Before the first question: where there is no NVML, as in a container that may only compute,
    # the answer is the driver's, and it goes on with what it saw then.
    os.environ[_VARIABLE] = number if there is None else there[int(number)]
    if torch.cuda.device_count() == 1:
        return msgspec.structs.replace(config, device="cuda")
    if seen is None:
        del os.environ[_VARIABLE]
    else:
        os.environ[_VARIABLE] = seen
    return config
