"""How the weights of a base model rest in memory, which is what a step has to read.

Legend: N output width, K input width.
"""

import enum

import torch

_ROWS = 256


class Quantization(enum.StrEnum):
    """In how many bits weights rest. They are widened where they are used."""

    NONE = "none"
    """The fewest that lose nothing: 16 for what was trained and saved in 16."""
    BFLOAT16 = "bfloat16"
    """16, rounded."""
    INT8 = "int8"
    """8, rounded to 127 steps on either side of zero, with a factor for each output."""
    FP8 = "fp8"
    """8, as numbers with four bits of exponent, with a factor for each output; by torchao alone."""


AT_REST = (Quantization.NONE, Quantization.BFLOAT16, Quantization.INT8)
"""What `at_rest` does."""


def at_rest(
    weight_NK: torch.Tensor, quantization: Quantization
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return float32 weights as they rest, [N, K], and the factor of each output, [N], or None."""
    assert quantization in AT_REST
    if quantization is Quantization.INT8:
        scale_N = weight_NK.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (weight_NK / scale_N[:, None]).round_().to(torch.int8), scale_N
    return weight_NK.to(floats_at_rest(weight_NK, quantization)), None


def floats_at_rest(weight_NK: torch.Tensor, quantization: Quantization) -> torch.dtype:
    """Return the format of float32 weights that rest as such numbers, and not as integers."""
    assert quantization is not Quantization.INT8
    if quantization is Quantization.BFLOAT16:
        return torch.bfloat16
    for dtype in (torch.bfloat16, torch.float16):
        # A few rows at a time: mostly the first say it, and no copy of everything is needed.
        if all(torch.equal(rows.to(dtype).float(), rows) for rows in torch.split(weight_NK, _ROWS)):
            return dtype
    return weight_NK.dtype


def widened(values_NK: torch.Tensor, scale_N: torch.Tensor | None) -> torch.Tensor:
    """Return the float32 weights that are computed with."""
    weight_NK = values_NK.float()
    return weight_NK if scale_N is None else weight_NK * scale_N[:, None]
