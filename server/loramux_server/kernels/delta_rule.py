"""The gated delta rule for one token per request.

Source: Yang et al., "Gated Delta Networks" (arXiv:2412.06464), and for per-channel decay
Kimi Linear (arXiv:2510.26692). Legend: T requests, H value heads, J key heads, K key width,
V value width, S slots.
"""

import torch


def delta_rule(
    q_TJK: torch.Tensor,
    k_TJK: torch.Tensor,
    v_THV: torch.Tensor,
    decay_THK: torch.Tensor,
    beta_TH: torch.Tensor,
    state_SHKV: torch.Tensor,
    read_T: torch.Tensor,
    write_T: torch.Tensor,
) -> torch.Tensor:
    """Update each request's state with its token, and return the state's output for its query.

    Semantics, for a request and a head:

        state = decay * slot[read]
        state = state + k ⊗ (beta * (v - k · state))
        slot[write] = state
        out = q · state

    Args:
        q_TJK: Queries, normalized and scaled; each key head serves H / J consecutive value heads.
        k_TJK: Keys, normalized, likewise.
        v_THV: Values.
        decay_THK: Decay factors of the state, per key channel.
        beta_TH: Fraction of the prediction error that is written to the state.
        state_SHKV: The state slots, modified in place. All of these are float32.
        read_T: Slots to read states from, int64.
        write_T: Slots to write states to, int64, distinct.

    Returns:
        The output, [T, H, V].
    """
    group = v_THV.shape[1] // k_TJK.shape[1]
    q_THK, k_THK = (x.repeat_interleave(group, dim=1) for x in (q_TJK, k_TJK))
    state_THKV = state_SHKV[read_T] * decay_THK[..., None]
    known_THV = torch.einsum("thk,thkv->thv", k_THK, state_THKV)
    error_THV = (v_THV - known_THV) * beta_TH[..., None]
    state_THKV += k_THK[..., None] * error_THV[:, :, None]
    state_SHKV[write_T] = state_THKV
    return torch.einsum("thk,thkv->thv", q_THK, state_THKV)
