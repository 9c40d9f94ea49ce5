"""AWQ weights in the "gemm" layout: 4 bits each, packed along outputs.

Source: AutoAWQ's `modules/linear/gemm.py`, whose files have

    qweight  [K, N / 8]  int32: eight adjacent outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7
                         from the lowest bits
    qzeros   [G, N / 8]  int32: zero points, packed in the same order
    scales   [G, N]

Legend: N output width, K input width, G groups of inputs, n requested outputs.
"""

import torch

from loramux_server.models.dequantize.bits import unpacked
from loramux_server.models.dequantize.layout import Parts, Slices, expect, group_size

BITS = 4
FORMAT = "gemm"
_PER_WORD = 32 // BITS
_FLOATS = ("F16", "BF16", "F32")
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Position in a word's bit order of each of its eight outputs."""


class AwqWeight:
    """W[n, k] = scales[g, n] * (q[k, n] - zeros[g, n]), where input k is of group g."""

    def __init__(self, name: str, slices: Slices, config_group_size: int | None) -> None:
        """Check the shapes.

        Args:
            name: Name of the layer.
            slices: The tensors above.
            config_group_size: Inputs per group according to the config.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        width, words = (*slices["qweight"].get_shape(), 0)[:2]
        groups, outputs = (*slices["scales"].get_shape(), 0)[:2]
        self.shape: tuple[int, ...] = (outputs, width)
        expect(f"{name}.qweight", slices["qweight"], (width, outputs // _PER_WORD), ("I32",))
        expect(f"{name}.qzeros", slices["qzeros"], (groups, words), ("I32",))
        expect(f"{name}.scales", slices["scales"], (groups, words * _PER_WORD), _FLOATS)
        self._group_size = group_size(f"{name}.scales", width, groups, config_group_size)

    def rows(self, parts: Parts, start: int, end: int) -> torch.Tensor:
        """Return outputs `start` to `end`, [n, K], float32."""
        words = slice(start // _PER_WORD, end // _PER_WORD)
        zeros_Gn = _in_order(unpacked(parts["qzeros"][:, words], BITS, 1))
        weight_Kn = _in_order(unpacked(parts["qweight"][:, words], BITS, 1))
        index_K = torch.arange(self.shape[1], device=weight_Kn.device) // self._group_size
        weight_Kn -= zeros_Gn[index_K]
        return (weight_Kn * parts["scales"][:, start:end].float()[index_K]).T


def _in_order(values: torch.Tensor) -> torch.Tensor:
    """Return numbers that are in bit order in the order of outputs."""
    return values.view(len(values), -1, _PER_WORD)[..., list(_PLACES)].flatten(1)
