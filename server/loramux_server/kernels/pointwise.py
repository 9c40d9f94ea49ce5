"""The operations of a layer between its matmuls: definitions in plain torch.

Legend: T tokens, K width, H query heads, J key heads, D head width.
"""

import torch


def rms_norm(x_TK: torch.Tensor, weight_K: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return `x / sqrt(mean(x**2) + epsilon) * weight`, over the last dimension, in x's dtype."""
    square_T1 = x_TK.float().pow(2).mean(-1, keepdim=True)
    scaled_TK = (x_TK.float() * torch.rsqrt(square_T1 + epsilon)).to(x_TK.dtype)
    return (scaled_TK * weight_K).to(x_TK.dtype)


def silu_mul(y_TN: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` as [T, N / 2], where gate and up are the halves of `y_TN`."""
    gate, up = y_TN.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rotate(
    q_THD: torch.Tensor, k_TJD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor
) -> None:
    """Apply rotary position embeddings (RoPE) to queries and keys, in place.

    Semantics, for each head x of each token, with its halves a and b:

        x = x * cos + (-b, a) * sin

    Source: RoPE (arXiv 2104.09864), in the half-split form of GPT-NeoX, as Llama and most others.
    """
    for x in (q_THD, k_TJD):
        a, b = x.chunk(2, dim=-1)
        x.copy_(x * cos_TD[:, None] + torch.cat((-b, a), dim=-1) * sin_TD[:, None])
