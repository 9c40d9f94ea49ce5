"""Weights in compressed-tensors' format pack-quantized: 4 or 8 bits each, packed along inputs.

Source: compressed-tensors' `compressors/pack_quantized`, whose files have

    weight_packed      [N, ceil(K * bits / 32)]  int32: signed numbers, saved plus 2 ** (bits - 1)
    weight_scale       [N, G], [N, 1] or [1]
    weight_zero_point  of the same shape, but packed along outputs: [ceil(N * bits / 32), G] int32;
                       int8 if there is one for the whole tensor. Missing if symmetric
    weight_shape       [2]  N and K
    weight_g_idx       [K]  int32: the group of each input, if quantized by activation order;
                       missing or -1 if groups are in order

Legend: N output width, K input width, G groups of inputs, n requested outputs.
"""

import torch

from loramux_server.models.dequantize.bits import unpacked
from loramux_server.models.dequantize.layout import Parts, Slices, expect, group_size, groups_of

BITS = (4, 8)


class PackedWeight:
    """W[n, k] = scale[n, g] * (q[n, k] - zero[n, g]), where input k is of group g."""

    def __init__(self, name: str, slices: Slices, config_group_size: int | None) -> None:
        """Check the shapes, which determine the number of bits.

        Args:
            name: Name of the layer.
            slices: The tensors above, by their names without `weight_`.
            config_group_size: Inputs per group according to the config.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        expect(f"{name}.weight_shape", slices["shape"], (2,), ("I64", "I32"))
        outputs, width = slices["shape"][...].tolist()
        self._name = name
        self.shape: tuple[int, ...] = (outputs, width)
        packed = slices["packed"].get_shape()
        words = {bits: -(-width * bits // 32) for bits in BITS}
        self._bits = next((b for b in BITS if packed == [outputs, words[b]]), 0)
        if not self._bits:
            raise ValueError(
                f"its tensor {name}.weight_packed has shape {packed}; expected "
                f"{' or '.join(f'{[outputs, words[b]]} ({b} bits)' for b in BITS)} for a weight of "
                f"shape {[outputs, width]}"
            )
        scale = tuple(slices["scale"].get_shape())
        groups = scale[-1] if len(scale) == 2 else 1
        expected = (outputs, groups) if torch.Size(scale).numel() > 1 else scale
        expect(f"{name}.weight_packed", slices["packed"], tuple(packed), ("I32",))
        expect(f"{name}.weight_scale", slices["scale"], expected, ("F16", "BF16", "F32"))
        self._group_size = group_size(f"{name}.weight_scale", width, groups, config_group_size)
        if "zero_point" in slices:
            zero = slices["zero_point"]
            if zero.get_dtype() == "I32":
                expected = (-(-outputs * self._bits // 32), groups)
            expect(f"{name}.weight_zero_point", zero, expected, ("I32", "I8"))
        if "g_idx" in slices:
            expect(f"{name}.weight_g_idx", slices["g_idx"], (width,), ("I32", "I64"))

    def rows(self, parts: Parts, start: int, end: int) -> torch.Tensor:
        """Return outputs `start` to `end`, [n, K], float32."""
        middle = 1 << (self._bits - 1)
        weight_nK = unpacked(parts["packed"][start:end], self._bits, 1)[:, : self.shape[1]] - middle
        index_K = self._groups(parts)
        zero = parts.get("zero_point")
        if zero is not None:
            if zero.dtype is torch.int32:
                first, last = start * self._bits // 32, -(-end * self._bits // 32)
                zero = unpacked(zero[first:last], self._bits, 0)[: end - start] - middle
            elif zero.numel() > 1:
                zero = zero[start:end]
            weight_nK -= _spread(zero, index_K)
        scale = parts["scale"]
        if scale.numel() > 1:
            scale = scale[start:end]
        return weight_nK * _spread(scale.float(), index_K)

    def _groups(self, parts: Parts) -> torch.Tensor:
        """Return the group of each input, [K]."""
        found = parts.get("g_idx")
        if found is not None and bool((found >= 0).all()):
            return groups_of(f"{self._name}.weight_g_idx", found, parts["scale"].shape[-1])
        width = torch.arange(self.shape[1], device=parts["packed"].device)
        return width // self._group_size


def _spread(values: torch.Tensor, index_K: torch.Tensor) -> torch.Tensor:
    """Expand numbers per group, [n, G], to one per input, [n, K]; one for all stays a scalar."""
    return values.reshape(()) if values.numel() == 1 else values[:, index_K]
