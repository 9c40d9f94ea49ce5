"""Heads in memory: of classification, and of spans.

Legend: T tokens, K width of a hidden state, L labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from loramux_adapters.head import HeadShape, Task
from loramux_server.lora.activations import ACTIVATIONS


@dataclass(frozen=True, slots=True)
class Head:
    """From the last hidden state of a token to a number for each label; tensors of float32.

    So are those of adapters for decoders.
    """

    weight_LK: torch.Tensor
    bias_L: torch.Tensor

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, as [T, L]."""
        # A product for each token: its bits do not depend on how many tokens a step has.
        rows = [
            torch.addmv(self.bias_L, self.weight_LK, hidden_K) for hidden_K in hidden_TK.float()
        ]
        return torch.stack(rows)


class LayeredHeads(Protocol):
    """The heads that transformers' classes have on a base model."""

    @property
    def shapes(self) -> Mapping[str, HeadShape]:
        """What is behind the layers of the base, by task; see `ModelInfo.heads`."""

    def known(self, task: Task) -> Mapping[str, torch.Tensor]:
        """Return the parameters that were saved with the base, float32, where it is."""

    def logits(
        self, task: Task, parameters: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return what a head makes of a whole text: [1, L], or [T, L] where it reads each token.

        Args:
            task: What it is for.
            parameters: Those that differ from `known`.
            hidden_TK: The last hidden state of each token.
        """


@dataclass(frozen=True, slots=True)
class LayeredHead:
    """A head as transformers' class for its task has it on an encoder; tensors of float32."""

    heads: LayeredHeads
    task: Task
    parameters: Mapping[str, torch.Tensor]
    """Those that the adapter brings or changes."""

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, for all tokens of a text.

        They are [1, L], or [T, L] where the task reads each token. A text is read alone, so that
        its bits do not depend on what else is in a step.
        """
        return self.heads.logits(self.task, self.parameters, hidden_TK.float())


@dataclass(frozen=True, slots=True)
class LayersHead:
    """A head of the `adapters` library on an encoder: linear layers one behind the other."""

    task: Task
    layers: Mapping[int, Head]
    """Number of each, in order -> the layer."""
    activation: str
    """What is between them."""

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, for all tokens of a text.

        They are [1, L] of its first token, or [T, L] where the task reads each. A text is read
        alone, so that its bits do not depend on what else is in a step.
        """
        x_TK = hidden_TK.float() if self.task.reads_all else hidden_TK[:1].float()
        for number, layer in self.layers.items():
            if number:
                x_TK = ACTIVATIONS[self.activation](x_TK)
            x_TK = nn.functional.linear(x_TK, layer.weight_LK, layer.bias_L)
        return x_TK


def states(hidden_TK: torch.Tensor) -> torch.Tensor:
    """Return the hidden states themselves, float32: what is read of a text that is embedded."""
    return hidden_TK.float()
