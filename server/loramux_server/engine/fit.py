"""Checks that the configured memory is available, with error messages for operators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loramux_server.engine.allowance import all_memory
from loramux_server.engine.out_of_memory import is_out_of_memory
from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes

_OF_DEVICE = ("kv_memory", "adapter_memory")


class NoRoomError(UnservableModelError):
    """There is less memory than configured, at least at the moment."""


@contextmanager
def fitting(
    model: BaseModel, config: EngineConfig, sizes: EngineSizes, free: int
) -> Iterator[None]:
    """Refuse sizes that the device has no memory for, before the block allocates or when it fails.

    Args:
        model: The base model, on its device.
        config: The config before sizes were chosen.
        sizes: The sizes in effect.
        free: Free bytes of the device, for this process.

    Raises:
        NoRoomError: It does not fit.
    """
    device = model.device
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
    else:
        whole = all_memory() // model.shard.count
    taken = {name: getattr(sizes, name) for name in _OF_DEVICE}
    # The system may overcommit more than all memory, and kill the process later.
    if sum(taken.values()) > whole:
        raise _refusal(taken, config, free, device)
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _refusal(taken, config, free, device) from None


def _refusal(
    taken: dict[str, int], config: EngineConfig, free: int, device: torch.device
) -> NoRoomError:
    said = [name for name in taken if getattr(config, name)]
    what = " and ".join(
        f"--{name.replace('_', '-')} of {_shown(taken[name])}" for name in said or taken
    )
    do = "does" if len(said) == 1 else "do"
    return NoRoomError(f"{what} {do} not fit on device {device}, which has {_shown(free)} free")


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):,.2f} GiB"
