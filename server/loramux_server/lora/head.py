"""Heads for classification and question answering (spans).

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
    """A linear layer from a token's last hidden state to a logit per label; float32.

    Adapters for decoders have such heads.
    """

    weight_LK: torch.Tensor
    bias_L: torch.Tensor

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, as [T, L]."""
        # One product per token, so that its bits do not depend on the number of tokens in a step.
        rows = [
            torch.addmv(self.bias_L, self.weight_LK, hidden_K) for hidden_K in hidden_TK.float()
        ]
        return torch.stack(rows)


class LayeredHeads(Protocol):
    """The heads of transformers' task classes for a base model."""

    @property
    def shapes(self) -> Mapping[str, HeadShape]:
        """The modules after the base's layers, by task; see `ModelInfo.heads`."""

    def known(self, task: Task) -> Mapping[str, torch.Tensor]:
        """Return the parameters that were saved with the base, float32, on its device."""

    def logits(
        self, task: Task, parameters: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits of a whole text: [1, L], or [T, L] for tasks that read each token.

        Args:
            task: The task of the head.
            parameters: Parameters that differ from `known`.
            hidden_TK: The last hidden state of each token.
        """


@dataclass(frozen=True, slots=True)
class LayeredHead:
    """The head of transformers' task class on an encoder; float32."""

    heads: LayeredHeads
    task: Task
    parameters: Mapping[str, torch.Tensor]
    """Those that the adapter adds or changes."""

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, for all tokens of a text.

        They are [1, L], or [T, L] for tasks that read each token. Each text is computed alone, so
        that its bits do not depend on the rest of the step.
        """
        return self.heads.logits(self.task, self.parameters, hidden_TK.float())


@dataclass(frozen=True, slots=True)
class LayersHead:
    """A head of the `adapters` library on an encoder: an MLP of linear layers."""

    task: Task
    layers: Mapping[int, Head]
    """Index -> layer, in order."""
    activation: str
    """The activation function between them."""

    def __call__(self, hidden_TK: torch.Tensor) -> torch.Tensor:
        """Return the logits of each label, float32, for all tokens of a text.

        They are [1, L] of its first token, or [T, L] for tasks that read each token. Each text is
        computed alone, so that its bits do not depend on the rest of the step.
        """
        x_TK = hidden_TK.float() if self.task.is_per_token else hidden_TK[:1].float()
        for number, layer in self.layers.items():
            if number:
                x_TK = ACTIVATIONS[self.activation](x_TK)
            x_TK = nn.functional.linear(x_TK, layer.weight_LK, layer.bias_L)
        return x_TK


def states(hidden_TK: torch.Tensor) -> torch.Tensor:
    """Return the hidden states in float32: the head of a text to embed."""
    return hidden_TK.float()
