"""Inner loops over the rank rows of an adapter, one of each for every format they rest in."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from loramux_server.kernels.simd import (
    WIDTH,
    load,
    load_bfloat16,
    load_float16,
    splat,
    store,
    total,
)

BLOCK = 4 * WIDTH
"""Numbers in a row that `widen` writes."""


def _dot_for(load_weights: Any, item_bytes: int) -> Callable[..., Any]:
    """Return a loop that multiplies four A rows with an input, for weights of one format."""

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def dot(a: Any, stride: Any, x: Any, width: Any) -> Any:
        s0 = s1 = s2 = s3 = splat(np.float32(0.0))
        for k in range(0, width, WIDTH):
            x_k, a_k = load(x + 4 * k), a + item_bytes * k
            s0 = s0 + x_k * load_weights(a_k)
            s1 = s1 + x_k * load_weights(a_k + stride)
            s2 = s2 + x_k * load_weights(a_k + 2 * stride)
            s3 = s3 + x_k * load_weights(a_k + 3 * stride)
        return total(s0), total(s1), total(s2), total(s3)

    return dot  # type: ignore[no-any-return]


def _add_for(load_weights: Any, item_bytes: int) -> Callable[..., Any]:
    """Return a loop that adds four scaled B rows to an output, for weights of one format."""

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def add(y: Any, b: Any, stride: Any, h0: Any, h1: Any, h2: Any, h3: Any, width: Any) -> None:
        v0, v1, v2, v3 = splat(h0), splat(h1), splat(h2), splat(h3)
        for n in range(0, width, WIDTH):
            y_n, b_n = y + 4 * n, b + item_bytes * n
            low = v0 * load_weights(b_n) + v1 * load_weights(b_n + stride)
            high = v2 * load_weights(b_n + 2 * stride) + v3 * load_weights(b_n + 3 * stride)
            store(y_n, load(y_n) + low + high)

    return add  # type: ignore[no-any-return]


def _widen_for(load_weights: Any, item_bytes: int) -> Callable[..., Any]:
    """Return a loop that copies a block of B rows to rows of float32, for weights of one format."""

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def widen(to: Any, b: Any, stride: Any, rank: Any, width: Any) -> None:
        for i in range(rank):
            for n in range(0, width, WIDTH):
                store(to + 4 * (i * BLOCK + n), load_weights(b + i * stride + item_bytes * n))

    return widen  # type: ignore[no-any-return]


dot_float32, dot_bfloat16 = _dot_for(load, 4), _dot_for(load_bfloat16, 2)
dot_float16 = _dot_for(load_float16, 2)
add_float32, add_bfloat16 = _add_for(load, 4), _add_for(load_bfloat16, 2)
add_float16 = _add_for(load_float16, 2)
widen_float32, widen_bfloat16 = _widen_for(load, 4), _widen_for(load_bfloat16, 2)
widen_float16 = _widen_for(load_float16, 2)
