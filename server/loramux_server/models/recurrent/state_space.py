"""Layers that are state spaces, whose states take in one token where they lie."""

from typing import Any

import torch
from torch import nn

from loramux_server.models.recurrent.in_slots import InSlots, is_close


class StateSpace(InSlots):
    """Stands where a layer's forward calls the recurrence of Mamba-2.

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
        """Return what each request reads, [T, H, P], and change the states.

        Args:
            state: All slots, [S, H, P, N], as `begin` was given them; else one state for each
                request, which the layer's own recurrence takes.
            hidden_states: [T, H, P].
            dt: Time steps, [T, H, P], the same in each head.
            A: Logarithms of decays, [H, P, N], the same in each head.
            B: [T, G, N].
            C: Likewise.
            D: Factors of what passes by the state, [H, P]; none where absent.
            dt_bias: What is added to time steps, [H, P], the same in each head.
            dt_softplus: Whether they are made positive.
            z: What gates the output, [T, H, P]; nothing where absent.
            kwargs: What else a layer passes along.
        """
        slots = self._taken(state)
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
