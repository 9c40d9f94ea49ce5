"""A state space of one number for each head's decay, for one token of each request.

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
    """Return what each request reads from its state, which takes its token in first.

    Semantics, for a request and a head:

        state = decay * slot[read] + x ⊗ b
        slot[write] = state
        out = state · c

    Args:
        x_THP: Inputs, each times its time step.
        decay_TH: Factors of the state.
        b_TGN: How inputs come in; each of the G groups is that of H / G neighbours.
        c_TGN: How outputs come out, likewise.
        state_SHPN: The slots, which are changed. All of these are float32.
        read_T: Slots in which states are found, int64.
        write_T: Slots in which they are left, int64, no two the same.

    Returns:
        The output, [T, H, P].
    """
    group = x_THP.shape[1] // b_TGN.shape[1]
    b_THN, c_THN = (each.repeat_interleave(group, dim=1) for each in (b_TGN, c_TGN))
    state_THPN = state_SHPN[read_T] * decay_TH[..., None, None]
    state_THPN += x_THP[..., None] * b_THN[:, :, None]
    state_SHPN[write_T] = state_THPN
    return torch.einsum("thpn,thn->thp", state_THPN, c_THN)
