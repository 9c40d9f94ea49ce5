"""Bit masks of allowed tokens: one bit per token, least significant bit first."""

import numpy as np
import torch

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_BITS, 0.0, -np.inf).astype(np.float32)
"""What to add to the logits of eight tokens, for each byte: by far the fastest way."""


def only_allowed(logits_V: torch.Tensor, allowed: bytes) -> torch.Tensor:
    """Return `logits_V` with -inf for each token whose bit in `allowed` is 0 or missing."""
    added = _ADDED.take(np.frombuffer(allowed, np.uint8), axis=0).reshape(-1)[: len(logits_V)]
    added_V = torch.from_numpy(added).to(logits_V.device)
    if num_without := len(logits_V) - len(added_V):
        added_V = torch.nn.functional.pad(added_V, (0, num_without), value=float("-inf"))
    return added_V.add_(logits_V)
