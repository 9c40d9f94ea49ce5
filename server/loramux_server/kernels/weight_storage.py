"""How a base model's weights are stored in memory, which decides how much a step reads.

Legend: N output width, K input width.
"""

import enum

import torch

_ROWS = 256


class Quantization(enum.StrEnum):
    """Storage format of weights, which are widened where they are used."""

    NONE = "none"
    """The narrowest lossless format: 16 bits for weights that were saved in 16."""
    BFLOAT16 = "bfloat16"
    """Rounded to bfloat16."""
    INT8 = "int8"
    """Symmetric int8 (-127 to 127) with a scale per output channel."""
    FP8 = "fp8"
    """8-bit floats with 4 exponent bits and a scale per output channel; by torchao only."""


SUPPORTED_QUANTIZATIONS = (Quantization.NONE, Quantization.BFLOAT16, Quantization.INT8)
"""The formats that `quantize` implements."""


def quantize(
    weight_NK: torch.Tensor, quantization: Quantization
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return float32 weights in storage format, [N, K], and the scale per output, [N], or None."""
    assert quantization in SUPPORTED_QUANTIZATIONS
    if quantization is Quantization.INT8:
        scale_N = weight_NK.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (weight_NK / scale_N[:, None]).round_().to(torch.int8), scale_N
    return weight_NK.to(storage_dtype(weight_NK, quantization)), None


def storage_dtype(weight_NK: torch.Tensor, quantization: Quantization) -> torch.dtype:
    """Return the dtype in which float32 weights are stored as floats, not as integers."""
    assert quantization is not Quantization.INT8
    if quantization is Quantization.BFLOAT16:
        return torch.bfloat16
    for dtype in (torch.bfloat16, torch.float16):
        # A few rows at a time: usually the first ones decide, and no full copy is needed.
        if all(torch.equal(rows.to(dtype).float(), rows) for rows in torch.split(weight_NK, _ROWS)):
            return dtype
    return weight_NK.dtype


def widened(values_NK: torch.Tensor, scale_N: torch.Tensor | None) -> torch.Tensor:
    """Return the stored weights in float32, as they are used in the matmul."""
    weight_NK = values_NK.float()
    return weight_NK if scale_N is None else weight_NK * scale_N[:, None]
