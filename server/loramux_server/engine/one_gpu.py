"""Which GPU a process sees."""

import os

import msgspec

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
    gpus = [] if seen is None else seen.split(",")
    if seen is not None and int(number) >= len(gpus):
        return config  # torch says so
    os.environ[_VARIABLE] = gpus[int(number)] if gpus else number
    return msgspec.structs.replace(config, device="cuda")
