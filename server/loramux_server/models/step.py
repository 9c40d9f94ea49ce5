"""What the model's layers need to know of the running step.

transformers does not pass our arguments through every model, so attention and the layers that we
put in hold a reference to this object. The model runner, its only writer, sets it before each step.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.backend import DEFINITIONS, Backend
from loramux_server.kernels.encoder_text import EncoderText
from loramux_server.kernels.states import StateBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Segments
from loramux_server.lora.virtual import VirtualRun

CPU = torch.device("cpu")


@dataclass(slots=True)
class Step:
    """The running step."""

    device: torch.device = CPU
    """Where the model runs."""
    backend: Backend = DEFINITIONS
    """The operations to use; set once, before the first step."""
    attention: AttentionBatch | None = None
    states: StateBatch | None = None
    """None if the model has no recurrent layers."""
    texts: tuple[EncoderText, ...] = ()
    """Texts of the requests, if the model reads whole texts."""
    embedded: tuple[VirtualRun, ...] = ()
    """Virtual tokens whose embeddings replace those of the input embedding."""
    num_tokens: int = 0
    """Number of tokens of all requests."""
    segments: Segments | None = None
    """None when no token has an adapter: then no adapter code runs at all."""
    adds: bool = False
    """Whether features are added between the first layers."""
    layers_graph_key: Hashable = None
    """See `StepInput`."""

    def take(self, given: StepInput) -> StepInput:
        """Make `given` the running step, and return it as it is on the device."""
        given = self.backend.stage(given.with_rows(), self.device)
        self.num_tokens = len(given.token_T)
        self.attention, self.segments = given.attention, given.segments
        self.states, self.texts, self.embedded = given.states, given.texts, given.embedded
        self.adds = bool(given.added)
        self.layers_graph_key = given.layers_graph_key
        return given
