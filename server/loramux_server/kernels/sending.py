"""Numbers on their way to a device, for which the host does not wait."""

import torch

_MOST_PINNED = 64 << 20
"""Bytes that lie a second time in the host's memory for it. More is waited for."""


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values`, which are in memory of the host, on `device`, in the order of its work."""
    if device.type != "cuda" or values.nbytes > _MOST_PINNED:
        return values.to(device)
    # Pageable memory would be copied when all of the device's work before it has ended.
    return values.pin_memory().to(device, non_blocking=True)
