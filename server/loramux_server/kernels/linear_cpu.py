"""A linear layer on a CPU with its weights packed once, and not in each call.

MKL rearranges the weights for its inner loops whenever it multiplies. For few tokens that takes
longer than the product: packed before, 8 tokens take two thirds of the time.
"""

import torch

from loramux_server.kernels.linear import Linear, make_linear

_PACKED_FOR = 512
"""Tokens that the weights are packed for. Any number may come: the order suits many best."""
_TRIED = (1, 7, 33)


def make_linear_cpu(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> Linear:
    """Do what `loramux_server.kernels.linear.make_linear` defines."""
    plain = make_linear(weight_NK, bias_N)
    if weight_NK.dtype != torch.float32 or not torch._C.has_mkl:
        return plain
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight_NK, _PACKED_FOR)
    # The operator takes the sizes from the weights as they were, and nothing else.
    sizes = weight_NK.new_empty(1).expand(weight_NK.shape)
    num_outputs = len(weight_NK)

    def linear(x_TK: torch.Tensor) -> torch.Tensor:
        if not len(x_TK):
            return x_TK.new_empty(0, num_outputs)
        y: torch.Tensor = torch.ops.mkl._mkl_linear(x_TK, packed, sizes, bias_N, len(x_TK))
        return y

    # MKL's documentation does not say that one packing serves any number of tokens; it does.
    for count in _TRIED:
        x = torch.linspace(-1, 1, count * weight_NK.shape[1]).view(count, -1)
        if not torch.allclose(
            linear(x), torch.nn.functional.linear(x, weight_NK, bias_N), atol=1e-3
        ):
            return make_linear(weight_NK, bias_N)
    return linear
