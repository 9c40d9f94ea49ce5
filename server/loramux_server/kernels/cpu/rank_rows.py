"""The inner loop over the B rows of an adapter, one per weight format."""

from collections.abc import Callable
from typing import Any

import numba

from loramux_server.kernels.cpu.simd import (
    WIDTH,
    load,
    load_bfloat16,
    load_float16,
    splat,
    store,
)


def _add_for(load_weights: Any, item_bytes: int) -> Callable[..., Any]:
    """Return a loop that adds four scaled B rows of one weight format to an output row."""

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def add(y: Any, b: Any, stride: Any, h0: Any, h1: Any, h2: Any, h3: Any, width: Any) -> None:
        v0, v1, v2, v3 = splat(h0), splat(h1), splat(h2), splat(h3)
        for n in range(0, width, WIDTH):
            y_n, b_n = y + 4 * n, b + item_bytes * n
            low = v0 * load_weights(b_n) + v1 * load_weights(b_n + stride)
            high = v2 * load_weights(b_n + 2 * stride) + v3 * load_weights(b_n + 3 * stride)
            store(y_n, load(y_n) + low + high)

    return add  # type: ignore[no-any-return]


add_float32, add_bfloat16 = _add_for(load, 4), _add_for(load_bfloat16, 2)
add_float16 = _add_for(load_float16, 2)
