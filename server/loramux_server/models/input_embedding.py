"""The input embedding. A weight that is tied to the output layer is in memory only once."""

from collections.abc import Callable

import torch
from torch import nn

from loramux_server.kernels.linear import Lookup
from loramux_server.models.packed_linear import OutputLayer


class InputEmbedding:
    """The input embedding, and access to its rows wherever they are stored."""

    def __init__(self, module: nn.Module, *, is_tied: bool) -> None:
        """Wrap `module`; `is_tied` says that it is an `nn.Embedding` tied to the output layer."""
        self._module = module
        self._is_tied = is_tied
        self._output: OutputLayer | None = None
        """The output layer whose copy of the weight is used, if any."""

    def attach(self, output: OutputLayer) -> None:
        """Free the weight if `output`, which is attached, has a copy of it; call once.

        Before each call, a hook then sets the module's weight to the rows of the call's tokens. So
        anything else that the module does is kept. If that gives other results, the module keeps
        its weight.
        """
        if not self._is_tied or output.lookup is None:
            return
        module = self._module
        assert isinstance(module, nn.Embedding)
        weight_VK, padding = module.weight, module.padding_idx
        last = len(weight_VK) - 1
        tokens = torch.tensor([[last, 0, last // 2, last]])
        wanted = module(tokens)
        hook = module.register_forward_pre_hook(_giving_rows(output.lookup))
        module.padding_idx = None  # used in training only, and may exceed the number of rows
        if torch.equal(module(tokens), wanted):
            self._output = output
            return
        hook.remove()
        module.weight, module.padding_idx = weight_VK, padding

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return the embeddings of tokens `start` to `end`, [rows, K], float32."""
        if self._output is not None:
            return self._output.rows(start, end)
        return self._module.get_parameter("weight")[start:end].float()


def _giving_rows(
    lookup: Lookup,
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor]]:
    def give(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        (token_T,) = arguments
        rows_TK = lookup(token_T.flatten())
        module.weight = nn.Parameter(rows_TK, requires_grad=False)
        return (torch.arange(len(rows_TK)).view_as(token_T),)

    return give
