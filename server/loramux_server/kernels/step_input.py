"""What a step is given: tokens, where they lie, and whose adapters apply to them.

Legend: T tokens, R rows whose logits are needed.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch

from loramux_server.kernels.adjust import Adjustments
from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.draw import Draws
from loramux_server.kernels.states import StateBatch
from loramux_server.kernels.whole_text import WholeText
from loramux_server.lora.segments import Segments
from loramux_server.lora.virtual import VirtualRun


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step's input."""

    token_T: torch.Tensor
    position_T: torch.Tensor
    sampled_R: torch.Tensor
    """Index of each token whose logits are needed; all three int64."""
    attention: AttentionBatch
    segments: Segments | None
    """None when every token belongs to the base model alone."""
    states: StateBatch | None = None
    """None where the model has no recurrent layers."""
    texts: tuple[WholeText, ...] = ()
    """The texts of its requests, in order, where the model reads them as wholes."""
    position_3T: torch.Tensor | None = None
    """Positions by time, height and width; None where they are the same, as in text."""
    embedded: tuple[VirtualRun, ...] = ()
    """Virtual tokens, or an image's, whose embeddings take the place of those of their tokens."""
    added: tuple[tuple[VirtualRun, ...], ...] = ()
    """What is added for tokens of images to what each of the first layers makes."""
    cached: tuple[VirtualRun, ...] = ()
    """Virtual tokens whose keys and values come to the cache before the step runs."""
    carried_T: torch.Tensor | None = None
    """Row of the step before whose token each token is, int64; None where tokens are known."""
    adjustments: Adjustments | None = None
    """What the step does to logits before it chooses; None where it leaves them as they are."""
    draws: Draws | None = None
    """How the step draws its tokens; None where it takes the likeliest."""
    tells_logprobs: bool = False
    """Whether the step tells log-probabilities beside its tokens."""
    reads: bool = False
    """Whether its last hidden states are read, by heads or for log-probabilities of prompts: such a
    step chooses no token and is not recorded."""
    graph_key: Hashable = None
    """Equal in steps that differ only in what memory holds; None where no other step is alike."""
    layers_graph_key: Hashable = None
    """Likewise of the layers alone, in a step that is alone in what is before and behind them."""
    rows_S: tuple[slice, ...] = ()
    """Rows of each segment, of those that `sampled_R` names; told once the step is taken."""

    @property
    def position_ids(self) -> torch.Tensor:
        """Positions as models take them, [1, T] or [3, 1, T]."""
        return self.position_T[None] if self.position_3T is None else self.position_3T[:, None]

    def at(self, token_R: torch.Tensor) -> "StepInput":
        """Return the same with logits of other tokens: in order, and in memory of the host."""
        device = self.sampled_R.device
        return replace(replace(self, sampled_R=token_R).with_rows(), sampled_R=token_R.to(device))

    def with_rows(self) -> "StepInput":
        """Return the same, which is in memory of the host, with the rows of each segment."""
        segments = self.segments
        if segments is None or segments.edits is None:
            return self
        sampled_R = self.sampled_R.numpy()  # tokens come in order, and so do segments
        first_S = np.searchsorted(sampled_R, segments.start_S).tolist()
        last_S = np.searchsorted(sampled_R, segments.end_S).tolist()
        return replace(self, rows_S=tuple(map(slice, first_S, last_S)))


def stage(given: StepInput, device: torch.device) -> StepInput:
    """Return `given`, which is in memory of the host, with its tensors in memory of `device`."""
    if device.type == "cpu":
        return given
    return replace(
        given,
        token_T=given.token_T.to(device),
        position_T=given.position_T.to(device),
        position_3T=None if given.position_3T is None else given.position_3T.to(device),
        sampled_R=given.sampled_R.to(device),
        attention=replace(given.attention, slot_T=given.attention.slot_T.to(device)),
    )
