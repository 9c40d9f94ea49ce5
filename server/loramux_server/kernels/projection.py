"""Linear layers that share an input, with LoRA applied.

Legend: T tokens, K input width, N output width over all layers, R slab rows, E = N + A rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loramux_server.kernels.linear import Linear
from loramux_server.lora.adapter_table import GroupTable
from loramux_server.lora.segments import Int32, Segments

if TYPE_CHECKING:
    from loramux_server.kernels.backend import Backend


@dataclass(frozen=True, slots=True)
class Projection:
    """A group of linear layers that share an input, and the adapters' A and B rows for them."""

    linear: Linear
    columns: Int32
    """Column offsets of the layers' outputs, one more than there are layers."""
    a_RK: torch.Tensor | None
    b_RN: torch.Tensor | None
    """None before there is a slab."""
    group: int
    extended_EK: torch.Tensor | None = None
    """The layers' weights followed by the A rows; None where these are stored separately."""
    table: GroupTable | None = None
    """Adapter metadata on the device; None where it is passed with each step."""
    is_partial: bool = False
    """Whether each process holds a shard of the inputs, so that results need an all-reduce."""


def project(
    projection: Projection, backend: "Backend", x_TK: torch.Tensor, segments: Segments | None
) -> torch.Tensor:
    """Return the concatenated outputs of the layers for `x_TK`, as [T, N].

    Semantics: y = linear(x), then `add_lora` for the tokens that have an adapter.
    """
    y_TN = projection.linear(x_TK)
    if segments is not None:
        a_RK, b_RN = projection.a_RK, projection.b_RN
        assert a_RK is not None
        assert b_RN is not None
        backend.add_lora(y_TN, x_TK, a_RK, b_RN, projection.columns, segments, projection.group)
    return y_TN
