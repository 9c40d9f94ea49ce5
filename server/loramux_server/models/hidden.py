"""The last hidden states of a step: read by heads, and made into logits some rows at a time.

Legend: T tokens, K width of a hidden state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from loramux_server.models.encoders.whole_texts import WholeTexts


@contextmanager
def last_hidden(module: PreTrainedModel | WholeTexts) -> Iterator[list[Any]]:
    """Keep what the model below the layer of logits, final norm included, gives in the block.

    Yields:
        A list to which each step adds its own; `hidden_states` tells those of one.
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
    """Return the hidden states, [T, K], of what `last_hidden` kept."""
    hidden_TK: torch.Tensor = output[0][0]
    return hidden_TK


@contextmanager
def given_hidden(module: PreTrainedModel, output: Any) -> Iterator[None]:  # noqa: ANN401
    """Let the model, in the block, take what `last_hidden` kept for what is below the logits.

    All that it does with hidden states then is done by its own code, for the rows it is asked for.
    """
    below: Any = module.base_model
    own = vars(below).get("forward")  # which libraries of quantised models put there
    below.forward = lambda *arguments, **options: output
    try:
        yield
    finally:
        del below.forward
        if own is not None:
            below.forward = own
