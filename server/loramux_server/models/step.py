"""What the layers of the model need to know of the step that runs.

transformers passes no arguments of ours through every model, so attention and the layers that we
put in hold a reference to this object; the model runner, its only writer, sets it before each step.
"""

from dataclasses import dataclass

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.backend import DEFINITIONS, Backend
from loramux_server.lora.segments import Segments


@dataclass(slots=True)
class Step:
    """The step that runs."""

    backend: Backend = DEFINITIONS
    """The operations to use; set once, before the first step."""
    attention: AttentionBatch | None = None
    segments: Segments | None = None
    """None when no token has an adapter: then no adapter code runs at all."""
