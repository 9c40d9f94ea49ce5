"""FP8 or int8 weights with separate scales.

Source: DeepSeek-V3's `inference/kernel.py` (a scale per block of 128 by 128, saved as
`weight_scale_inv`, but multiplied with nevertheless); compressed-tensors' formats float-quantized,
int-quantized and naive-quantized (`weight_scale`, and a zero point if asymmetric); FBGEMM's FP8
(`weight_scale` per output).

Legend: N output width, K input width, G groups of inputs, n requested outputs.
"""

import torch

from loramux_server.models.dequantize.layout import Parts, Slices, expect, group_size

FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
INT8 = ("I8",)
_FACTORS = ("F32", "F16", "BF16", "F8_E8M0")


class ScaledWeight:
    """W = (weight - zero) * scale, with scale and zero broadcast to their outputs and inputs."""

    def __init__(self, name: str, slices: Slices, block: tuple[int, int] | None) -> None:
        """Check the shapes.

        Args:
            name: Name of the weight.
            slices: `weight`, [..., N, K]; `scale`, and optionally `zero` of its shape. That is []
                or
                [1] for the whole weight, [N] or [N, 1] for each output, [N, G], or
                [..., ceil(N / block[0]), ceil(K / block[1])].
            block: Outputs and inputs of a block, if the config has any.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        self.shape = tuple(slices["weight"].get_shape())
        scale = tuple(slices["scale"].get_shape())
        if len(self.shape) < 2:
            raise ValueError(
                f"its tensor {name} has shape {list(self.shape)}; expected two dimensions"
            )
        *leading, outputs, width = self.shape
        self._size = outputs, width
        expect(f"{name} (its scales)", slices["scale"], scale, _FACTORS)
        if "zero" in slices:
            expect(f"{name} (its zero points)", slices["zero"], scale, (*INT8, *FP8, *_FACTORS))
        if torch.Size(scale).numel() == 1:
            return
        if scale == (outputs,):
            scale = (outputs, 1)
        if block is not None:
            grid = (-(-outputs // block[0]), -(-width // block[1]))
            if scale == (*leading, *grid):
                self._size = block
                return
        if scale[:-1] != (*leading, outputs):
            raise ValueError(
                f"the scales of {name}, {list(self.shape)}, have shape {list(scale)}; expected one "
                "for the tensor, for each output or for each block of weight_block_size"
            )
        self._size = 1, group_size(name, width, scale[-1], None)

    def rows(self, parts: Parts, start: int, end: int) -> torch.Tensor:
        """Return outputs `start` to `end`, [..., n, K], float32."""
        weight_nK = parts["weight"][..., start:end, :].float()
        if "zero" in parts:
            weight_nK -= self._spread(parts["zero"], start, end)
        return weight_nK.mul_(self._spread(parts["scale"], start, end))

    def _spread(self, values: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Expand numbers to outputs `start` to `end`, [..., n, K]; one for all stays a scalar."""
        values = values.float()
        if values.numel() == 1:
            return values.reshape(())
        if values.dim() == 1:
            values = values[:, None]
        outputs, width = self._size
        index_n = torch.arange(start, end, device=values.device) // outputs
        index_K = torch.arange(self.shape[-1], device=values.device) // width
        return values[..., index_n, :][..., index_K]
