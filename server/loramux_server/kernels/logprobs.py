"""Log-probabilities of the chosen tokens and of the K likeliest.

Legend: R rows, V vocabulary size, K likeliest tokens.
"""

import torch

_STEP = 1 << 32


def logprobs(logits_RV: torch.Tensor, token_R: torch.Tensor, count: int) -> torch.Tensor:
    """Return per row: log-probability of its token, those of the K likeliest, and these tokens.

    The result is [R, 1 + 2 * K] of float64, in this order, the likeliest first and of equal logits
    the lower token first, so that K only sets the length. Shapes do not depend on values and
    nothing synchronizes with the host, so this can be captured in a CUDA graph.

    Args:
        logits_RV: The model's own logits, float32.
        token_R: The token of each row, int64.
        count: K, at most V.
    """
    total_R1 = logits_RV.logsumexp(-1, keepdim=True)
    # Integer sort keys: by logit (the float's bits, made monotonic), then by lower token.
    bits_RV = (logits_RV + 0.0).view(torch.int32)
    rank_RV = (bits_RV ^ ((bits_RV >> 31) & 0x7FFFFFFF)).long()
    token_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    key_RK, _ = (rank_RV * _STEP + (_STEP - 1 - token_V)).topk(count)
    token_RK = _STEP - 1 - key_RK % _STEP
    value_RK = logits_RV.gather(1, torch.cat((token_R[:, None], token_RK), 1)) - total_R1
    return torch.cat((value_RK.double(), token_RK.double()), 1)
