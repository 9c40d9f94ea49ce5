"""Singular values of updates, computed from their factors without forming the product B A.

With the QR decompositions B = Q R and A' = P S, B A has the singular values of the small matrix
R S'. Shapes: R rank, I input features, O output features, K the smaller of rank and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loramux_adapters.weights.update import Update

Wide = npt.NDArray[np.float64]
Factors = tuple[Wide, Wide]
"""B, multiplied by the scale, and A."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A singular value decomposition: `u_OK * s_K @ v_KI`."""

    u_OK: Wide
    s_K: Wide
    """Largest first."""
    v_KI: Wide

    def best(self, module: str, rank: int) -> Update:
        """Return the best update of at most `rank`, with scale 1 and factors of equal norms."""
        root_K = np.sqrt(self.s_K[:rank])
        a_RI = (root_K[:, None] * self.v_KI[:rank]).astype(np.float32)
        b_OR = (self.u_OK[:, :rank] * root_K).astype(np.float32)
        return Update(module, 1.0, a_RI, b_OR)


def factors(update: Update) -> Factors:
    """Return the factors of one update in float64."""
    return update.b_OR.astype(np.float64) * update.scale, update.a_RI.astype(np.float64)


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> Factors:
    """Return the factors of the weighted sum of one layer's updates; their ranks add up."""
    pairs = [factors(update) for update in updates]
    b_OR = np.concatenate(
        [b * weight for (b, _), weight in zip(pairs, weights, strict=True)], axis=1
    )
    return b_OR, np.concatenate([a for _, a in pairs])


def singular_values(product: Factors) -> Wide:
    """Return the singular values of a product of finite factors, largest first."""
    b_OR, a_RI = product
    (_, r_b), (_, r_a) = np.linalg.qr(b_OR), np.linalg.qr(a_RI.T)
    return np.linalg.svd(r_b @ r_a.T, compute_uv=False)


def spectrum(product: Factors) -> Spectrum:
    """Return the singular value decomposition of a product of finite factors."""
    b_OR, a_RI = product
    (q_b, r_b), (q_a, r_a) = np.linalg.qr(b_OR), np.linalg.qr(a_RI.T)
    u, s_K, v = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Spectrum(q_b @ u, s_K, v @ q_a.T)


def norm(s_K: Wide) -> float:
    """Return the Frobenius norm of a matrix with the singular values `s_K`."""
    return float(np.linalg.norm(s_K))


def effective_rank(s_K: Wide) -> float:
    """Return the effective rank of an update; 0 if it is zero.

    It is the exponential of the entropy of the energy distribution, the squared singular values.
    Source: Roy and Vetterli, "The effective rank", 2007, who do not square the values.
    """
    if not s_K[0]:
        return 0.0
    energy = (s_K / s_K[0]) ** 2
    shares = energy[energy > 0] / energy.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def dot(first: Update, second: Update) -> float:
    """Return the Frobenius inner product of two updates of one layer."""
    (b_1, a_1), (b_2, a_2) = factors(first), factors(second)
    return float(((b_1.T @ b_2) * (a_1 @ a_2.T)).sum())
