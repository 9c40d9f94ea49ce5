"""The tensor-parallel process group, as the layers see it: results are all-reduced.

Only tensors pass between the processes here; commands have a channel of their own
(`loramux_server.engine.team`).
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
"""How long a process waits for another within a step before it gives up."""


def join(shard: Shard, device: torch.device, meeting: Path) -> None:
    """Join the process group of all shards; return once all have joined.

    Args:
        shard: The shard of this process.
        device: The device of its layers.
        meeting: Path of the rendezvous file: the same for all processes, and not yet there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # All processes are on this machine, and must not be reachable from others.
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
    """Leave the process group, if this process has joined it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sharded(whole: Backend) -> Backend:
    """Return the operations of `whole` for layers that are sharded among processes.

    Decoder layers run operation by operation, because fused decoders do not all-reduce.
    """

    def project(
        projection: Projection, backend: Backend, x_TK: torch.Tensor, segments: Segments | None
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.projection.project`, summed over all shards."""
        y_TN = whole.project(projection, backend, x_TK, segments)
        if projection.is_partial:
            y_TN = y_TN.contiguous()
            torch.distributed.all_reduce(y_TN)
        return y_TN

    return replace(whole, project=project, make_decoder=make_decoder)


def _loopback() -> str:
    """Return the name of the loopback network interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    raise RuntimeError("no network interface has the address 127.0.0.1")
