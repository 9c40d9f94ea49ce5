"""A linear layer on a CPU with its weights packed once, and not in each call.

MKL rearranges the weights for its inner loops whenever it multiplies. For few tokens that takes
longer than the product: packed before, 8 tokens take two thirds of the time.
"""

from functools import cache

import torch

from loramux_server.kernels.linear import Linear, make_linear

_PACKED_FOR = 512
"""Tokens that the weights are packed for. Any number may come: the order suits many best."""
_TRIED = (1, 7, 33)


def make_linear_cpu(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Linear:
    """Do what `loramux_server.kernels.linear.make_linear` defines."""
    if weight_NK.dtype != torch.float32 or not torch._C.has_mkl or not _is_right(*weight_NK.shape):
        return make_linear(weight_NK, bias_N)
    return _packed(weight_NK, bias_N)


def _packed(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Linear:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight_NK, _PACKED_FOR)
    # The operator takes the sizes from the weights as they were, and nothing else.
    sizes = weight_NK.new_empty(1).expand(weight_NK.shape)
    num_outputs = len(weight_NK)

    def linear(x_TK: torch.Tensor) -> torch.Tensor:
        if not len(x_TK):
            return x_TK.new_empty(0, num_outputs)
        y: torch.Tensor = torch.ops.mkl._mkl_linear(x_TK, packed, sizes, bias_N, len(x_TK))
        return y

    return linear


@cache
def _is_right(outputs: int, inputs: int) -> bool:
    """Return whether one packing of weights of this shape serves any number of tokens.

    MKL's documentation does not say so; it does.
    """
    generator = torch.Generator().manual_seed(0)
    weight_NK = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    plain, packed = make_linear(weight_NK, None), _packed(weight_NK, None)
    tried = (torch.randn(count, inputs, generator=generator) for count in _TRIED)
    return all(torch.allclose(packed(x), plain(x), rtol=1e-4, atol=1e-4) for x in tried)
