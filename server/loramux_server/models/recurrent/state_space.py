"""State-space layers that update states in their slots."""

from typing import Any

import torch
from torch import nn

from loramux_server.models.recurrent.in_place import InPlaceUpdate, is_close


class StateSpace(InPlaceUpdate):
    """Takes the place of the recurrence of Mamba-2 that a layer's forward calls.

    Legend: T requests, H heads, G groups of heads, P head width, N state width, S slots.
    """

    names = ("mamba2_selective_state_update",)

    def __call__(
        self,
        state: torch.Tensor,
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None = None,
        dt_bias: torch.Tensor | None = None,
        dt_softplus: bool = False,
        z: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return each request's output, [T, H, P], and update the states in place.

        Args:
            state: All slots, [S, H, P, N], as passed to `begin`; anything else is one state per
                request, and is handled by the layer's own recurrence.
            hidden_states: [T, H, P].
            dt: Time steps, [T, H, P], constant within a head.
            A: Continuous-time decay rates, negative, [H, P, N], constant within a head.
            B: [T, G, N].
            C: Likewise.
            D: Skip connection, [H, P]; none if absent.
            dt_bias: Bias of the time steps, [H, P], constant within a head.
            dt_softplus: Whether softplus is applied to the time steps.
            z: Gate of the output, [T, H, P]; none if absent.
            kwargs: Other arguments of the layer.
        """
        slots = self._take_slots(state)
        if slots is None:
            out: torch.Tensor = self._original(
                state, hidden_states, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=dt_softplus,
                z=z, **kwargs,
            )  # fmt: skip
            return out
        step_TH = dt[..., 0].float()
        if dt_bias is not None:
            step_TH = step_TH + dt_bias[..., 0].float()
        if dt_softplus:
            step_TH = nn.functional.softplus(step_TH)
        decay_TH = torch.exp(step_TH * A[:, 0, 0].float())
        x_THP = hidden_states.float() * step_TH[..., None]
        backend = self._step.backend
        read_THP = backend.state_space(x_THP, decay_TH, B.float(), C.float(), state, *slots)
        if D is not None:
            read_THP = read_THP + hidden_states * D
        if z is not None:
            read_THP = read_THP * nn.functional.silu(z)
        return read_THP.to(hidden_states.dtype)

    def _is_same(self, heads: int, rows: int, columns: int) -> bool:
        generator = torch.Generator().manual_seed(0)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        of_heads = (heads, rows)
        x, z, d = random(2, *of_heads), random(2, *of_heads), random(heads, 1).expand(of_heads)
        dt, bias = random(2, heads, 1).expand(2, *of_heads), random(heads, 1).expand(of_heads)
        a = -random(heads, 1, 1).abs().expand(heads, rows, columns)
        b, c = random(2, 1, columns), random(2, 1, columns)
        slots = random(4, heads, rows, columns)
        read_T, write_T = torch.tensor([1, 2]), torch.tensor([1, 3])
        named: dict[str, Any] = {"dt_bias": bias, "dt_softplus": True, "z": z}
        own, changed = slots[read_T], slots.clone()
        wanted = self._original(own, x, dt, a, b, c, d, **named)
        self.begin(changed, read_T, write_T)
        found = self(changed, x, dt, a, b, c, d, **named)
        return is_close(found, wanted) and is_close(changed[write_T], own)
