"""The singular values of updates, from their factors: no product B A is ever formed.

With B = Q R and A transposed = P S, B A has the singular values of the small matrix R S transposed.
Shapes: R rank, I input features, O output features, K the smaller of rank and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loramux_adapters.weights.update import Update

Wide = npt.NDArray[np.float64]
Factors = tuple[Wide, Wide]
"""B, with the scale in it, and A."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A singular value decomposition: `u_OK * s_K @ v_KI`."""

    u_OK: Wide
    s_K: Wide
    """Largest first."""
    v_KI: Wide

    def best(self, module: str, rank: int) -> Update:
        """Return the nearest update of at most `rank`, at scale 1, with factors of equal norms."""
        root_K = np.sqrt(self.s_K[:rank])
        a_RI = (root_K[:, None] * self.v_KI[:rank]).astype(np.float32)
        b_OR = (self.u_OK[:, :rank] * root_K).astype(np.float32)
        return Update(module, 1.0, a_RI, b_OR)


def factors(update: Update) -> Factors:
    """Return the factors of one update."""
    return update.b_OR.astype(np.float64) * update.scale, update.a_RI.astype(np.float64)


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> Factors:
    """Return the factors of the weighted sum of updates of one layer; their ranks add up."""
    pairs = [factors(update) for update in updates]
    b_OR = np.concatenate(
        [b * weight for (b, _), weight in zip(pairs, weights, strict=True)], axis=1
    )
    return b_OR, np.concatenate([a for _, a in pairs])


def singular_values(product: Factors) -> Wide:
    """Return the singular values of finite factors, largest first."""
    b_OR, a_RI = product
    (_, r_b), (_, r_a) = np.linalg.qr(b_OR), np.linalg.qr(a_RI.T)
    return np.linalg.svd(r_b @ r_a.T, compute_uv=False)


def spectrum(product: Factors) -> Spectrum:
    """Return the singular value decomposition of finite factors."""
    b_OR, a_RI = product
    (q_b, r_b), (q_a, r_a) = np.linalg.qr(b_OR), np.linalg.qr(a_RI.T)
    u, s_K, v = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Spectrum(q_b @ u, s_K, v @ q_a.T)


def norm(s_K: Wide) -> float:
    """Return the Frobenius norm of what has the singular values `s_K`."""
    return float(np.linalg.norm(s_K))


def effective_rank(s_K: Wide) -> float:
    """Return how many directions an update spreads over: 0 if it is zero.

    The exponential of the entropy of the shares of energy, the squared singular values. Source:
    Roy and Vetterli, "The effective rank", 2007, who take the values as they are.
    """
    if not s_K[0]:
        return 0.0
    energy = (s_K / s_K[0]) ** 2
    shares = energy[energy > 0] / energy.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def dot(first: Update, second: Update) -> float:
    """Return the sum of the products of the entries of two updates of one layer."""
    (b_1, a_1), (b_2, a_2) = factors(first), factors(second)
    return float(((b_1.T @ b_2) * (a_1 @ a_2.T)).sum())
