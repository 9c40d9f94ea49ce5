"""Combination of arrays by methods of model merging, as in `peft.utils.merge_utils`.

Sources: TIES, Yadav et al. 2023 (arXiv 2306.01708); DARE, Yu et al. 2023 (arXiv 2311.03099).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from loramux_adapters.weights.dtypes import Array

Draw = Callable[[tuple[int, ...], float], npt.NDArray[np.bool_]]
"""Shape and density -> random mask of the entries to keep."""
Sign = Literal["total", "frequency"]
Method = Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"]
METHODS: tuple[Method, ...] = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")


def seeded(seed: int) -> Draw:
    """Return a source of random masks that depends only on the seed."""
    random = np.random.default_rng(seed)
    return lambda shape, density: random.random(shape) < density


def combined(
    method: Method,
    arrays: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float,
    sign: Sign,
    draw: Draw,
) -> Array:
    """Return the weighted combination of `arrays`, which have the same shape."""
    if method.startswith("dare"):
        arrays = [_drop(array, density, draw) for array in arrays]
    elif method != "linear":
        arrays = [_largest(array, density) for array in arrays]
    stack = np.stack(arrays)
    factors = np.array(weights, np.float32).reshape(-1, *[1] * arrays[0].ndim)
    if not method.endswith("ties"):
        total: Array = np.sum(stack * factors, axis=0, dtype=np.float32)
        return total
    agrees = _agrees(stack, sign)
    count = np.maximum(agrees.sum(axis=0), 1).astype(np.float32)
    result: Array = np.sum(stack * factors * agrees, axis=0, dtype=np.float32) / count
    return result


def _largest(array: Array, density: float) -> Array:
    """Return `array` with only its share `density` of largest entries; the others are 0."""
    if density >= 1:
        return array
    kept = int(density * array.size)
    flat = array.ravel()
    result = np.zeros_like(flat)
    if kept:
        chosen = np.argpartition(np.abs(flat), flat.size - kept)[flat.size - kept :]
        result[chosen] = flat[chosen]
    return result.reshape(array.shape)


def _drop(array: Array, density: float, draw: Draw) -> Array:
    """Return `array` with a random share `density` of its entries, rescaled to keep its mean."""
    if density >= 1:
        return array
    return array * draw(array.shape, density) / np.float32(density)


def _agrees(stack: Array, sign: Sign) -> npt.NDArray[np.bool_]:
    """Return which entries have the majority's sign, by sum of values or by count of signs."""
    votes = stack.sum(axis=0) if sign == "total" else np.sign(stack).sum(axis=0)
    agrees: npt.NDArray[np.bool_] = np.sign(stack) == np.where(votes >= 0, 1, -1)
    return agrees
