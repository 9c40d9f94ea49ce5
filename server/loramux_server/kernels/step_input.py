"""The input of a step: tokens, their places in the cache, and the adapters that apply to them.

Legend: T tokens, R rows whose logits are needed.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch

from loramux_server.kernels.adjust import Adjustments
from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.draw import Draws
from loramux_server.kernels.encoder_text import EncoderText
from loramux_server.kernels.states import StateBatch
from loramux_server.lora.segments import Segments
from loramux_server.lora.virtual import VirtualRun


@dataclass(frozen=True, slots=True)
class StepInput:
    """The input of one step."""

    token_T: torch.Tensor
    position_T: torch.Tensor
    sampled_R: torch.Tensor
    """Index of each token whose logits are needed. All three are int64."""
    attention: AttentionBatch
    segments: Segments | None
    """None if no token has an adapter."""
    states: StateBatch | None = None
    """None where the model has no recurrent layers."""
    texts: tuple[EncoderText, ...] = ()
    """The texts of its requests, in order, where the model reads whole texts (encoders)."""
    position_3T: torch.Tensor | None = None
    """Positions by time, height and width (M-RoPE); None where all three are equal, as in text."""
    embedded: tuple[VirtualRun, ...] = ()
    """Virtual tokens and image tokens whose embeddings replace those of their placeholders."""
    added: tuple[tuple[VirtualRun, ...], ...] = ()
    """Image features to add to the output of each of the first layers."""
    cached: tuple[VirtualRun, ...] = ()
    """Virtual tokens whose keys and values are copied to the cache before the step runs."""
    carried_T: torch.Tensor | None = None
    """Row of the previous step that samples each token, int64; None where tokens are known."""
    adjustments: Adjustments | None = None
    """Logit adjustments before sampling; None if there are none."""
    draws: Draws | None = None
    """Sampling parameters; None where the likeliest token is taken."""
    returns_logprobs: bool = False
    """Whether the step returns log-probabilities with its tokens."""
    reads_hidden: bool = False
    """Whether its last hidden states are read, by heads or for prompt log-probabilities. Such a
    step samples no token and is not captured in a CUDA graph."""
    graph_key: Hashable = None
    """CUDA graph key: equal for steps that differ only in memory contents. None: no graph."""
    layers_graph_key: Hashable = None
    """Likewise for a graph of the layers alone, where embeddings or output cannot be captured."""
    rows_S: tuple[slice, ...] = ()
    """Rows of `sampled_R` that belong to each segment; see `with_rows`."""

    @property
    def position_ids(self) -> torch.Tensor:
        """Positions in the shape that models take, [1, T] or [3, 1, T]."""
        return self.position_T[None] if self.position_3T is None else self.position_3T[:, None]

    def at(self, token_R: torch.Tensor) -> "StepInput":
        """Return a copy with logits of `token_R` instead: ascending, and in host memory."""
        device = self.sampled_R.device
        return replace(replace(self, sampled_R=token_R).with_rows(), sampled_R=token_R.to(device))

    def with_rows(self) -> "StepInput":
        """Return a copy with `rows_S` filled in; the tensors must be in host memory."""
        segments = self.segments
        if segments is None or segments.edits is None:
            return self
        sampled_R = self.sampled_R.numpy()  # ascending, like the segments
        first_S = np.searchsorted(sampled_R, segments.start_S).tolist()
        last_S = np.searchsorted(sampled_R, segments.end_S).tolist()
        return replace(self, rows_S=tuple(map(slice, first_S, last_S)))


def stage(given: StepInput, device: torch.device) -> StepInput:
    """Return `given`, which is in host memory, with its tensors on `device`."""
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
