"""A linear layer on a GPU, which may go on through the A rows behind its weights.

Legend: T tokens, K input width, N output width, E weight rows and A rows behind them.
"""

import torch

from loramux_server.kernels.linear import PlainLinear


class LinearGpu(PlainLinear):
    """Does what `loramux_server.kernels.linear.make_linear` defines."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        super().__init__(weight_NK, bias_N)
        self._bias_E = bias_N

    @property
    def num_outputs(self) -> int:
        """Width of the output."""
        return len(self._weight_NK)

    def extended(
        self, x_TK: torch.Tensor, extended_EK: torch.Tensor, num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, and what the first `num_rows` A rows make of the input, by one matmul.

        Both are views of one result.

        Args:
            x_TK: The input.
            extended_EK: The weights with the A rows behind them.
            num_rows: How many of these are read.
        """
        end = self.num_outputs + num_rows
        bias_E = None
        if self._bias_E is not None:
            if len(self._bias_E) < end:
                missing = len(extended_EK) - len(self._bias_E)
                self._bias_E = torch.nn.functional.pad(self._bias_E, (0, missing))
            bias_E = self._bias_E[:end]
        y_TE = torch.nn.functional.linear(x_TK, extended_EK[:end], bias_E)
        return y_TE[:, : self.num_outputs], y_TE[:, self.num_outputs :]


def make_linear_gpu(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> LinearGpu:
    """Return the layer with these weights, which stay where they are."""
    return LinearGpu(weight_NK, bias_N)
