"""A linear layer on a GPU, whose matmul can include the A rows stored after its weights.

Legend: T tokens, K input width, N output width, E weight rows plus the A rows after them.
"""

import torch

from loramux_server.kernels.linear import PlainLinear


class LinearGpu(PlainLinear):
    """Implements `loramux_server.kernels.linear.Linear`."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        super().__init__(weight_NK, bias_N)
        self._bias_E = bias_N

    @property
    def num_outputs(self) -> int:
        """Output width."""
        return len(self._weight_NK)

    def extended(
        self, x_TK: torch.Tensor, extended_EK: torch.Tensor, num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output and h of the first `num_rows` A rows, from one matmul.

        Both are views of one result.

        Args:
            x_TK: The input.
            extended_EK: The weights followed by the A rows.
            num_rows: Number of A rows to read.
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
    """Return the layer with these weights, which are not copied."""
    return LinearGpu(weight_NK, bias_N)
