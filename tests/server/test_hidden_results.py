"""What is read of a text becomes one, chunk by chunk."""

import numpy as np
import pytest

from loramux_adapters.embedding import Pooling
from loramux_server.engine.hidden_results import gather, pooled_result
from loramux_server.engine.request import Request
from loramux_server.wire.sampling import Sampling


def mean_of(rows: np.ndarray, size: int) -> bytes:
    request = Request(
        0, [5] * len(rows), None, Sampling(max_tokens=1, seed=0), pooling=Pooling.MEAN
    )
    for first in range(0, len(rows), size):
        gather(request, first, rows[first : first + size])
    return pooled_result(request)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_mean_of_many_is_as_exact_as_its_numbers(size: int) -> None:
    rows = np.random.default_rng(0).normal(0.1, 1, (4096, 8)).astype(np.float32)
    rows[0] = 3e7  # beside which a sum in float32 loses most of what comes after
    wanted = rows.astype(np.float64).mean(0).astype(np.float32)
    assert mean_of(rows, size) == mean_of(rows, 100)
    np.testing.assert_allclose(np.frombuffer(mean_of(rows, size), np.float32), wanted, rtol=2e-7)
