"""Small integers packed into 32-bit integers."""

import torch


def unpacked(packed: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return the unsigned `bits`-bit numbers in int32 `packed`, as int32.

    Dimension `dim` of the result is 32 / `bits` times as long. The lowest bits come first.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    shifts = shifts.view(-1, *[1] * (packed.dim() - dim - 1))
    # The shift is arithmetic; the mask removes the sign bits.
    return (packed.unsqueeze(dim + 1) >> shifts & (1 << bits) - 1).flatten(dim, dim + 1)
