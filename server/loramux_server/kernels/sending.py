"""Numbers on their way to a device, for which the host does not wait."""

import torch


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values`, which are in memory of the host, on `device`, in the order of its work."""
    if device.type != "cuda":
        return values.to(device)
    # Pageable memory would be copied when all of the device's work before it has ended.
    return values.pin_memory().to(device, non_blocking=True)
