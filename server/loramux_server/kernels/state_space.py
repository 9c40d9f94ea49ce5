"""A state space model with one scalar decay per head, for one token per request.

Source: Dao and Gu, "Transformers are SSMs" (Mamba-2, arXiv:2405.21060). Legend: T requests, H
heads, G groups of heads, P head width, N state width, S slots.
"""

import torch


def state_space(
    x_THP: torch.Tensor,
    decay_TH: torch.Tensor,
    b_TGN: torch.Tensor,
    c_TGN: torch.Tensor,
    state_SHPN: torch.Tensor,
    read_T: torch.Tensor,
    write_T: torch.Tensor,
) -> torch.Tensor:
    """Update each request's state with its token, and return the state's output.

    Semantics, for a request and a head:

        state = decay * slot[read] + x ⊗ b
        slot[write] = state
        out = state · c

    Args:
        x_THP: Inputs, each multiplied by its time step.
        decay_TH: Decay factors of the state.
        b_TGN: Input projection; each group serves H / G consecutive heads.
        c_TGN: Output projection, likewise.
        state_SHPN: The state slots, modified in place. All of these are float32.
        read_T: Slots to read states from, int64.
        write_T: Slots to write states to, int64, distinct.

    Returns:
        The output, [T, H, P].
    """
    group = x_THP.shape[1] // b_TGN.shape[1]
    b_THN, c_THN = (each.repeat_interleave(group, dim=1) for each in (b_TGN, c_TGN))
    state_THPN = state_SHPN[read_T] * decay_TH[..., None, None]
    state_THPN += x_THP[..., None] * b_THN[:, :, None]
    state_SHPN[write_T] = state_THPN
    return torch.einsum("thpn,thn->thp", state_THPN, c_THN)
