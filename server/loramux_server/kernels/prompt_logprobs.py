"""Log-probabilities and ranks of a prompt's own tokens, with the K likeliest.

Legend: R rows, V vocabulary size, K likeliest tokens.
"""

import torch

from loramux_server.kernels.cpu.logprobs import logprobs_cpu
from loramux_server.kernels.logprobs import logprobs


def prompt_logprobs(logits_RV: torch.Tensor, token_R: torch.Tensor, count: int) -> torch.Tensor:
    """Return per row the rank of its token, from 1, followed by the result of `logprobs`.

    The result is [R, 2 + 2 * K] of float64; of equal logits the lower token ranks first. A row
    whose greatest logit is not finite is NaN.

    Args:
        logits_RV: The model's own logits, float32; -inf for tokens outside a row's vocabulary.
        token_R: The token of each row, int64.
        count: K, at most V.
    """
    # The maximum is NaN if any logit is, and infinite if the row overflowed.
    is_finite_R1 = logits_RV.amax(-1, keepdim=True).isfinite()
    logits_RV = logits_RV.masked_fill(~is_finite_R1, 0.0)
    form = logprobs_cpu if logits_RV.device.type == "cpu" else logprobs
    results_RL = form(logits_RV, token_R, count)
    token_R1 = token_R[:, None]
    value_R1 = logits_RV.gather(1, token_R1)
    token_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    is_before_RV = (logits_RV > value_R1) | ((logits_RV == value_R1) & (token_V < token_R1))
    rank_R1 = is_before_RV.sum(-1, keepdim=True) + 1
    results_RL = torch.cat((rank_R1.double(), results_RL), 1)
    return results_RL.masked_fill(~is_finite_R1, float("nan"))
