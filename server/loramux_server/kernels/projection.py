"""Linear layers that share an input, with the adapters' changes on top.

Legend: T tokens, K input width, N output width over all layers, R slab rows, E = N and A rows.
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
    """Linear layers that share an input, and the rows of the adapters behind them."""

    linear: Linear
    columns: Int32
    """Borders between the layers' outputs."""
    a_RK: torch.Tensor | None
    b_RN: torch.Tensor | None
    """None before there is a slab."""
    group: int
    extended_EK: torch.Tensor | None = None
    """The layers' weights with the A rows behind them; None where they lie apart."""
    table: GroupTable | None = None
    """What is known of the adapters on the device; None where each step says it."""
    is_partial: bool = False
    """Whether each process has a share of the inputs, so that their results are to be added up."""


def project(
    projection: Projection, backend: "Backend", x_TK: torch.Tensor, segments: Segments | None
) -> torch.Tensor:
    """Return what the layers make of `x_TK` side by side, as [T, N].

    Semantics: y = linear(x), and `add_lora` on top where a token has an adapter.
    """
    y_TN = projection.linear(x_TK)
    if segments is not None:
        a_RK, b_RN = projection.a_RK, projection.b_RN
        assert a_RK is not None
        assert b_RN is not None
        backend.add_lora(y_TN, x_TK, a_RK, b_RN, projection.columns, segments, projection.group)
    return y_TN
