"""Asynchronous copies from the host to a device."""

import torch

_MOST_PINNED = 64 << 20
"""Bytes up to which a tensor is copied to pinned host memory first; larger copies block."""


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values`, which are in host memory, on `device`; the copy is stream-ordered."""
    if device.type != "cuda" or values.nbytes > _MOST_PINNED:
        return values.to(device)
    # A copy from pageable memory would block until the device has done all earlier work.
    return values.pin_memory().to(device, non_blocking=True)
