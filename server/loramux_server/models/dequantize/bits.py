"""Numbers of few bits, several in an integer of 32."""

import torch


def unpacked(packed: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return the unsigned numbers of `bits` bits in int32 `packed`, int32.

    `dim` is 32 / `bits` times as long in what is returned. The lowest bits come first.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    shifts = shifts.view(-1, *[1] * (packed.dim() - dim - 1))
    # Shifting keeps the sign, which the mask removes.
    return (packed.unsqueeze(dim + 1) >> shifts & (1 << bits) - 1).flatten(dim, dim + 1)
