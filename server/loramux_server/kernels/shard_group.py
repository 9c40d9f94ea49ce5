"""The processes that hold a model together, as its layers know them: they add up their results.

What goes between them here are numbers only; what they are to do they are told over a channel of
its own (`loramux_server.engine.team`).
"""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed

from loramux_server.kernels.backend import Backend
from loramux_server.kernels.decoder import make_decoder
from loramux_server.kernels.projection import Projection
from loramux_server.lora.segments import Segments
from loramux_server.lora.shard import Shard

MAX_WAIT = timedelta(seconds=120)
"""How long one process waits for another in the middle of a step before it gives up."""


def join(shard: Shard, device: torch.device, meeting: Path) -> None:
    """Come together with the processes that have the other shards, once all of them are there.

    Args:
        shard: Which one this process has.
        device: Where its layers run.
        meeting: A path at which no file is yet, the same for all.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # All of them are on this machine, and nobody else is to reach them.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    store = torch.distributed.FileStore(str(meeting), shard.count)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=shard.index,
        world_size=shard.count,
        timeout=MAX_WAIT,
    )


def leave() -> None:
    """Part from the others, if this process ever came together with them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sharded(whole: Backend) -> Backend:
    """Return the operations of `whole` for layers that several processes hold.

    Layers are done operation by operation: a form that does them in one go knows of no others.
    """

    def project(
        projection: Projection, backend: Backend, x_TK: torch.Tensor, segments: Segments | None
    ) -> torch.Tensor:
        """Do what `loramux_server.kernels.projection.project` defines, for all inputs."""
        y_TN = whole.project(projection, backend, x_TK, segments)
        if projection.is_partial:
            y_TN = y_TN.contiguous()
            torch.distributed.all_reduce(y_TN)
        return y_TN

    return replace(whole, project=project, make_decoder=make_decoder)


def _loopback() -> str:
    """Return the name of the network interface that only this machine reaches."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    raise RuntimeError("no network interface has the address 127.0.0.1")
