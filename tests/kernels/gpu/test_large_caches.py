"""A cache of more numbers than 32 bits count: what is at its end is found and written there."""

import numpy as np
import pytest
import torch

from loramux_server.kernels.attention import AttentionForm
from loramux_server.kernels.gpu.rope_write import rope_write_triton
from loramux_server.kernels.gpu.write_cache import write_cache_triton
from tests.support.attention import problem
from tests.support.device_attention import check, give
from tests.support.low_rank import normal, residents

BLOCK, WIDTH = 16, 64
FIRST = (1 << 31) // WIDTH
"""The first slot whose numbers are behind the 2 ** 31 first ones."""


@pytest.fixture(scope="module")
def cache(device: torch.device) -> torch.Tensor:
    """Keys, [S, 1, D], of which memory of the host is taken where it is touched alone."""
    return torch.empty(FIRST + 64 * BLOCK, 1, WIDTH, dtype=torch.float16, device=device)


def test_keys_and_values_behind_it_are_written_and_attended_to(
    cache: torch.Tensor, device: torch.device
) -> None:
    queries, contexts = [1, 5], [40, 33]
    given_problem = problem(
        queries, contexts, heads=2, kv_heads=1, width=WIDTH, value_width=WIDTH, block_size=BLOCK,
        dtype=torch.float16,
    )  # fmt: skip
    form = AttentionForm(scale=0.125)
    given = give(given_problem, device, shortest=2)
    small_K, small_V = given.keys, given.values
    num_slots = len(small_K)
    large_K = cache[: FIRST + num_slots]
    # Values lie where keys do, behind them.
    large_V = cache[num_slots : FIRST + 2 * num_slots]
    slots = torch.arange(num_slots, device=device)
    write_cache_triton(large_K, large_V, small_K, small_V, slots + FIRST)
    assert torch.equal(large_K[FIRST:].nan_to_num(), small_K.nan_to_num())
    assert torch.equal(large_V[FIRST:].nan_to_num(), small_V.nan_to_num())
    given.keys, given.values = large_K, large_V
    given.batch.table_BM.add_(FIRST // BLOCK)
    given.decode(form, 2)
    given.prefill(form)
    given.keys, given.values = small_K, small_V
    check(given, given_problem, form)


def test_what_is_turned_goes_behind_it(cache: torch.Tensor, device: torch.device) -> None:
    y = normal((3, 4 * WIDTH), torch.float16, device, seed=0)
    tiles = residents([[1]], [4 * WIDTH], 1, device=device).tiles([(3, None)], 16)
    angle = normal((3, WIDTH), torch.float16, device, seed=1)
    q = y.new_empty(3, 2, WIDTH)
    slots = torch.tensor([0, 5, 2], device=device)
    small = [y.new_zeros(8, 1, WIDTH) for _ in range(2)]
    rope_write_triton(y, None, tiles, None, angle.cos(), angle.sin(), slots, q, *small)
    large = [cache[: FIRST + 8], cache[16 : FIRST + 24]]
    rope_write_triton(y, None, tiles, None, angle.cos(), angle.sin(), slots + FIRST, q, *large)
    for found, wanted in zip(large, small, strict=True):
        assert torch.equal(found[slots + FIRST], wanted[slots])
    assert np.prod(large[0].shape) > 1 << 31
