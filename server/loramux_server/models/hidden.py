"""The last hidden states of a step, which heads read.

Legend: T tokens, K width of a hidden state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


@contextmanager
def last_hidden(module: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Keep what the model below the layer of logits, final norm included, gives in the block.

    Yields:
        A list to which each step adds its own, [T, K].
    """
    found: list[torch.Tensor] = []

    def keep(part: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        found.append(output[0][0])

    hook = module.base_model.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
