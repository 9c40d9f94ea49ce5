"""Heads in memory: of classification, and of spans.

Legend: T tokens, K width of a hidden state, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loramux_adapters import head
from loramux_adapters.tensorfile import TensorInfo


@dataclass(frozen=True, slots=True)
class Head:
    """From the last hidden state of a token to a number for each label; tensors of float32."""

    weight_LK: torch.Tensor
    bias_L: torch.Tensor

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, as [T, L]."""
        # A product for each token: its bits do not depend on how many tokens a step has.
        rows = [
            torch.addmv(self.bias_L, self.weight_LK, hidden_K) for hidden_K in hidden_TK.float()
        ]
        return torch.stack(rows)


def states(hidden_TK: torch.Tensor) -> torch.Tensor:
    """Return the hidden states themselves, float32: what is read of a text that is embedded."""
    return hidden_TK.float()


def pack_head(found: head.Head, read: Callable[[TensorInfo], torch.Tensor]) -> Head:
    """Return the head `found` of a package, whose tensors `read` returns."""
    bias_L = read(found.bias) if found.bias else torch.zeros(found.num_labels)
    return Head(read(found.weight), bias_L)
