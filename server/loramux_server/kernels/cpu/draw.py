"""Sampling on a CPU, as `kernels/draw.py` defines it; sorts only the tokens that a row may keep.

Uses numpy, which stays on this thread: for one row, waking torch's other threads takes longer.

Legend: R rows, V vocabulary size, K candidate tokens.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from loramux_server.kernels.draw import UNITS, Draws

Float32 = npt.NDArray[np.float32]


def draw_cpu(logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Implement `loramux_server.kernels.draw.draw`."""
    token_R = likeliest_R.clone()
    rows = zip(likeliest_R.tolist(), draws.rows_R5.tolist(), strict=True)
    for i, (likeliest, row) in enumerate(rows):
        logits_V = logits_RV[i].numpy()
        most = float(logits_V[likeliest])
        if row[0] > 0 and math.isfinite(most):
            token_R[i] = _draw(logits_V, most, *row)
    return token_R


def _draw(
    logits_V: Float32,
    most: float,
    inverse: float,
    top_k: float,
    top_p: float,
    margin: float,
    number: float,
) -> int:
    """Return the token of one row; its parameters are in the order of `Draws.rows_R5`."""
    least, total = np.float32(most + margin), None
    # Candidates are chosen by threshold, so that tokens of equal logits are all in or all out.
    if top_k >= 1:
        count = min(int(top_k), len(logits_V))
        likeliest_K, _ = torch.from_numpy(logits_V).topk(count, sorted=False)
        is_first_V = logits_V >= float(likeliest_K.min())
    elif top_p >= 1 and margin > -math.inf:
        is_first_V = logits_V >= least
    else:
        weight_V = _weigh(logits_V, most, inverse)
        if top_p >= 1:
            return _place(weight_V.cumsum(), len(weight_V), number)
        total = int(weight_V.sum())
        # All tokens below this weight together weigh less than what top-p excludes. The factor 1/2
        # is a safety margin for rounding.
        is_first_V = weight_V >= (1 - top_p) * total / len(weight_V) / 2
    (token_K,) = is_first_V.nonzero()
    key_K = -logits_V[token_K]
    order_K = key_K.argsort(kind="stable")
    key_K = key_K[order_K]
    sum_K = _weigh(-key_K, most, inverse).cumsum()
    left = min(len(sum_K), int(top_k) or len(sum_K))
    if top_p < 1:
        reached = math.ceil(top_p * (total or int(sum_K[left - 1])))
        left = min(left, int(sum_K.searchsorted(reached)) + 1)
    left = min(left, int(key_K.searchsorted(-least, "right")))
    return int(token_K[order_K[_place(sum_K, left, number)]])


def _weigh(logits_K: Float32, most: float, inverse: float) -> npt.NDArray[np.int64]:
    part_K = np.subtract(logits_K, most, dtype=np.float64)
    part_K *= inverse
    np.exp(part_K, out=part_K)
    part_K *= UNITS
    return part_K.astype(np.int64)


def _place(sum_K: npt.NDArray[np.int64], left: int, number: float) -> int:
    mass = int(sum_K[left - 1])
    return int(sum_K.searchsorted(min(int(number * mass), mass - 1), "right"))
