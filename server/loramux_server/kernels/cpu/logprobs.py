"""Log-probabilities on a CPU, as `logprobs.py` defines them, with few tokens put in order.

Legend: as in `logprobs.py`.
"""

import numpy as np
import torch


def logprobs_cpu(logits_RV: torch.Tensor, token_R: torch.Tensor, count: int) -> torch.Tensor:
    """Do what `loramux_server.kernels.logprobs.logprobs` defines."""
    rows = zip(logits_RV, token_R.tolist(), strict=True)
    return torch.stack([_row(logits_V, token, count) for logits_V, token in rows])


def _row(logits_V: torch.Tensor, token: int, count: int) -> torch.Tensor:
    told = np.empty(1 + 2 * count)
    values_V, total = logits_V.numpy(), np.float32(logits_V.logsumexp(-1))
    told[0] = values_V[token] - total
    if count:
        # All that equal the last of the likeliest: which of them topk gives is left open.
        least = float(logits_V.topk(count, sorted=False).values.min())
        (tokens,) = (values_V >= least).nonzero()
        tokens = tokens[(-values_V[tokens]).argsort(kind="stable")[:count]]
        told[1 : 1 + count], told[1 + count :] = values_V[tokens] - total, tokens
    return torch.from_numpy(told)
