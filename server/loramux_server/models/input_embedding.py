"""The module that takes tokens. A weight that the output layer has, too, is in memory once."""

from collections.abc import Callable

import torch
from torch import nn

from loramux_server.kernels.linear import Lookup
from loramux_server.models.packed_linear import OutputLayer


class InputEmbedding:
    """A module of embeddings, and its rows wherever they are."""

    def __init__(self, module: nn.Module, *, is_tied: bool) -> None:
        """Take `module`, an `nn.Embedding` with the weight of the output layer if `is_tied`."""
        self._module = module
        self._is_tied = is_tied
        self._output: OutputLayer | None = None
        """Whose copy of the weight is read."""

    def attach(self, output: OutputLayer) -> None:
        """Let go of the weight if `output`, which is attached, has a copy of it; once.

        In each call the rows of its tokens are the module's weight then. So whatever else the
        module does goes on, and one that needs more of the weight keeps it.
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
        module.padding_idx = None  # of use in training alone, and may be more than the rows
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
