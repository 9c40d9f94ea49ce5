"""The inputs of a step on the device: one buffer, filled by one copy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_NUM_HOST_BUFFERS = 2
"""Double buffering: one may still be in transfer while the next is filled."""
_ALIGNMENT = 16
"""Alignment of arrays in bytes: Triton recompiles for pointers that are aligned differently."""
_DTYPES: dict[torch.dtype, type[np.generic]] = {
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


class Staging:
    """Named arrays at addresses that stay the same from step to step."""

    def __init__(
        self, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], device: torch.device
    ) -> None:
        """Allocate arrays of these dtypes and shapes."""
        is_pinned = device.type == "cuda"
        sizes = [dtype.itemsize * int(np.prod(shape)) for dtype, shape in shapes.values()]
        total = sum(map(_aligned, sizes))
        memory = torch.zeros(total, dtype=torch.uint8, device=device)
        self._memory = memory
        self._hosts = [
            torch.zeros(total, dtype=torch.uint8, pin_memory=is_pinned)
            for _ in range(_NUM_HOST_BUFFERS)
        ]
        self._turn = 0
        self._sent: list[torch.cuda.Event | None] = [None for _ in self._hosts]
        """End of the last copy from each host buffer; None before the first."""
        self.on_device: dict[str, torch.Tensor] = {}
        """The arrays on the device."""
        self._views: list[dict[str, npt.NDArray[Any]]] = [{} for _ in self._hosts]
        at = 0
        for (name, (dtype, shape)), size in zip(shapes.items(), sizes, strict=True):
            self.on_device[name] = memory[at : at + size].view(dtype).view(shape)
            for host, views in zip(self._hosts, self._views, strict=True):
                chunk = host.numpy()[at : at + size]
                views[name] = chunk.view(_DTYPES[dtype]).reshape(shape)
            at += _aligned(size)

    def begin(self) -> dict[str, npt.NDArray[Any]]:
        """Return the host arrays to fill for the next step; they hold values of an earlier one.

        Wait until that one has been copied, in case the host is several steps ahead of the device.
        """
        self._turn = (self._turn + 1) % len(self._hosts)
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        return self._views[self._turn]

    def send(self) -> None:
        """Copy the filled arrays to the device, in stream order."""
        self._memory.copy_(self._hosts[self._turn], non_blocking=True)
        if self._memory.is_cuda:
            self._sent[self._turn] = event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
