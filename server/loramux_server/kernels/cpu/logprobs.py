"""Log-probabilities on a CPU, as `kernels/logprobs.py` defines them; sorts only a few tokens.

Legend: as in `kernels/logprobs.py`.
"""

import numpy as np
import torch


def logprobs_cpu(logits_RV: torch.Tensor, token_R: torch.Tensor, count: int) -> torch.Tensor:
    """Implement `loramux_server.kernels.logprobs.logprobs`."""
    rows = zip(logits_RV, token_R.tolist(), strict=True)
    return torch.stack([_row(logits_V, token, count) for logits_V, token in rows])


def _row(logits_V: torch.Tensor, token: int, count: int) -> torch.Tensor:
    results = np.empty(1 + 2 * count)
    values_V, total = logits_V.numpy(), np.float32(logits_V.logsumexp(-1))
    results[0] = values_V[token] - total
    if count:
        # All ties with the last of the likeliest: which of them topk returns is unspecified.
        least = float(logits_V.topk(count, sorted=False).values.min())
        (tokens,) = (values_V >= least).nonzero()
        tokens = tokens[(-values_V[tokens]).argsort(kind="stable")[:count]]
        results[1 : 1 + count], results[1 + count :] = values_V[tokens] - total, tokens
    return torch.from_numpy(results)
