"""GPTQ weights: a few bits each, packed along inputs.

Source: AutoGPTQ's `qlinear_cuda_old.py` and GPTQModel, whose files have

    qweight  [K * bits / 32, N]  int32: input k of an output is in row k * bits // 32
    qzeros   [G, N * bits / 32]  int32: zero points, packed along outputs; format "gptq" saves
                                 them minus one, modulo 2 ** bits, and "gptq_v2" as they are
    scales   [G, N]
    g_idx    [K]                 int32: the group of each input; not in order if quantized by
                                 activation order (desc_act)

Legend: N output width, K input width, G groups of inputs, n requested outputs.
"""

import torch

from loramux_server.models.dequantize.bits import unpacked
from loramux_server.models.dequantize.layout import Parts, Slices, expect, group_size, groups_of

BITS = (2, 4, 8)
"""Those that divide 32."""
FORMATS = ("gptq", "gptq_v2")


class GptqWeight:
    """W[n, k] = scales[g_idx[k], n] * (q[k, n] - zeros[g_idx[k], n])."""

    def __init__(
        self, name: str, slices: Slices, config_group_size: int | None, *, zeros_minus_one: bool
    ) -> None:
        """Check the shapes, which determine the number of bits.

        Args:
            name: Name of the layer.
            slices: The tensors above; `g_idx` may be missing.
            config_group_size: Inputs per group according to the config.
            zeros_minus_one: Whether zero points are saved minus one.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        groups, outputs = _matrix(f"{name}.scales", slices["scales"].get_shape())
        words = _matrix(f"{name}.qzeros", slices["qzeros"].get_shape())[1]
        self._bits = 32 * words // max(1, outputs)
        if self._bits not in BITS:
            raise ValueError(
                f"the shapes of qzeros and scales of layer {name} imply {self._bits} bits; "
                f"expected {' or '.join(map(str, BITS))}"
            )
        rows = _matrix(f"{name}.qweight", slices["qweight"].get_shape())[0]
        width = rows * 32 // self._bits
        self._name = name
        self.shape: tuple[int, ...] = (outputs, width)
        self._group_size = group_size(f"{name}.scales", width, groups, config_group_size)
        self._zeros_minus_one = zeros_minus_one
        expect(f"{name}.qweight", slices["qweight"], (rows, outputs), ("I32",))
        expect(f"{name}.qzeros", slices["qzeros"], (groups, words), ("I32",))
        expect(f"{name}.scales", slices["scales"], (groups, outputs), ("F16", "BF16", "F32"))
        if "g_idx" in slices:
            expect(f"{name}.g_idx", slices["g_idx"], (width,), ("I32",))

    def rows(self, parts: Parts, start: int, end: int) -> torch.Tensor:
        """Return outputs `start` to `end`, [n, K], float32."""
        first, last = start * self._bits // 32, -(-end * self._bits // 32)
        zeros_Gn = unpacked(parts["qzeros"][:, first:last], self._bits, 1)[:, : end - start]
        if self._zeros_minus_one:
            zeros_Gn = zeros_Gn + 1 & (1 << self._bits) - 1
        weight_Kn = unpacked(parts["qweight"][:, start:end], self._bits, 0)
        if "g_idx" in parts:
            index_K = groups_of(f"{self._name}.g_idx", parts["g_idx"], len(parts["scales"]))
        else:
            index_K = torch.arange(self.shape[1], device=weight_Kn.device) // self._group_size
        weight_Kn -= zeros_Gn[index_K]
        return (weight_Kn * parts["scales"][:, start:end].float()[index_K]).T


def _matrix(name: str, shape: list[int]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"its tensor {name} has shape {shape}; expected two dimensions")
    return shape[0], shape[1]
