"""The last hidden states of a step: for heads, and for computing logits of some rows at a time.

Legend: T tokens, K width of a hidden state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from loramux_server.models.encoders.encoder_runner import EncoderRunner


@contextmanager
def last_hidden(module: PreTrainedModel | EncoderRunner) -> Iterator[list[Any]]:
    """Record the output of the model below the output layer, final norm included, in the block.

    Yields:
        A list to which each step appends its output; pass one to `hidden_states`.
    """
    found: list[Any] = []

    def keep(part: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        found.append(output)

    hook = module.base_model.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def hidden_states(output: Any) -> torch.Tensor:  # noqa: ANN401
    """Return the hidden states, [T, K], of an output that `last_hidden` recorded."""
    hidden_TK: torch.Tensor = output[0][0]
    return hidden_TK


@contextmanager
def given_hidden(module: PreTrainedModel, output: Any) -> Iterator[None]:  # noqa: ANN401
    """Let the model, in the block, reuse an output of `last_hidden` instead of running its layers.

    Everything after the layers is still done by its own code, for the requested rows.
    """
    below: Any = module.base_model
    own = vars(below).get("forward")  # set by quantization libraries
    below.forward = lambda *arguments, **options: output
    try:
        yield
    finally:
        del below.forward
        if own is not None:
            below.forward = own
