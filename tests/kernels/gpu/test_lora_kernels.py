"""Shrink and expand: the definitions, and the kernels, against float64."""

from collections.abc import Callable, Sequence
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from loramux_server.kernels.gpu import expand as expanding
from loramux_server.kernels.gpu import shrink as shrinking
from loramux_server.kernels.gpu.expand import expand, expand_triton
from loramux_server.kernels.gpu.shrink import shrink, shrink_triton
from loramux_server.kernels.gpu.tiles import LowRank
from tests.kernels.gpu.dtypes import DTYPES
from tests.support.low_rank import NAN, Run, assert_close, guarded, normal, residents
from tests.support.replay import record

Form = tuple[Callable[..., None], Callable[..., None]]
FORMS: dict[str, Form] = {
    "definition": (shrink, expand),
    "triton": (shrink_triton, expand_triton),
}
Case = tuple[list[Run], list[list[int]], list[int], int, int]
"""Runs, ranks of each adapter in each part, output widths, input width, tile size."""
CASES: dict[str, Case] = {
    "one-token": ([(1, 0)], [[8]], [32], 16, 16),
    "rank-1-odd-widths": ([(1, 1), (2, 0)], [[1], [1]], [7], 5, 16),
    "odd-sizes": ([(1, 0), (3, None), (18, 1), (2, 2)], [[3], [13], [7]], [17], 33, 16),
    "base": ([(3, None)], [[8, 8]], [16, 16], 32, 16),
    "identical": ([(21, 0)], [[16, 16, 16]], [48, 16, 16], 48, 16),
    "distinct": ([(1, a) for a in range(8)], [[16, 16, 16]] * 8, [48, 16, 16], 48, 16),
    "mixed-ranks": ([(1, a) for a in (4, 2, 0, 1, 3)], [[r, r] for r in (1, 8, 64, 5, 33)],
                    [48, 32], 48, 16),
    "parts-without-adapter": ([(1, 0), (2, 1), (1, None)], [[8, 0, 3], [0, 0, 16]],
                              [150, 16, 9], 32, 16),
    "prefill": ([(70, 0), (5, None), (50, 1)], [[8, 8], [24, 20]], [32, 16], 200, 64),
    "prefill-beside-decode": ([(1, 2), (1, 3), (40, 0), (1, None), (12, 1)],
                              [[r, r] for r in (4, 8, 64, 2)], [32, 16], 64, 64),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_planes", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_each_token_has_the_change_of_its_adapter(
    case: str, form: str, num_planes: int, dtype: torch.dtype, device: torch.device
) -> None:
    runs, ranks, outputs, width, size = CASES[case]
    found, wanted = _apply(
        runs, ranks, outputs, width, size, form, num_planes, dtype, device,
        has_vectors=num_planes == 1,
    )  # fmt: skip
    assert_close(found, wanted, width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_a_merged_matmul_serves_as_well(
    case: str, form: str, dtype: torch.dtype, device: torch.device
) -> None:
    runs, ranks, outputs, width, size = CASES[case]
    adapters = residents(ranks, outputs, width, dtype, device)
    y, x = _inputs(runs, outputs, width, dtype, device)
    merged_y, low_rank = adapters.merged(y, x)
    FORMS[form][1](merged_y, adapters.columns, low_rank, adapters.tiles(runs, size))
    assert_close(merged_y, adapters.changed64(y, x, runs), width)


@pytest.mark.parametrize("case", CASES)
def test_shrink_writes_what_is_read_and_nothing_else(case: str, device: torch.device) -> None:
    runs, ranks, outputs, width, size = CASES[case]
    adapters = residents(ranks, outputs, width, device=device)
    _, x = _inputs(runs, outputs, width, torch.float32, device)
    wanted = torch.full((8, len(x), adapters.num_columns), NAN, device=device)
    found = guarded(wanted)
    tiles = adapters.tiles(runs, size)
    shrink(x, adapters.a, adapters.num_parts, tiles, adapters.table, wanted)
    shrink_triton(x, adapters.a, adapters.num_parts, tiles, adapters.table, found.inner)
    assert torch.equal(found.inner.isnan(), wanted.isnan())
    assert found.is_intact()
    torch.testing.assert_close(found.inner.sum(0), wanted.sum(0), equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_expand_leaves_what_is_around_y(case: str, device: torch.device) -> None:
    runs, ranks, outputs, width, size = CASES[case]
    adapters = residents(ranks, outputs, width, device=device)
    y, x = _inputs(runs, outputs, width, torch.float32, device)
    tiles = adapters.tiles(runs, size)
    found = guarded(y)
    low_rank = adapters.gathered(x, tiles, shrink_triton, 2)
    expand_triton(found.inner, adapters.columns, low_rank, tiles)
    assert found.is_intact()
    assert_close(found.inner, adapters.changed64(y, x, runs), width)


@pytest.mark.parametrize(("columns", "k", "n"), [(16, 16, 16), (64, 256, 256)])
@pytest.mark.parametrize("case", ["parts-without-adapter", "prefill"])
def test_work_may_be_cut_in_other_ways(
    case: str, columns: int, k: int, n: int, device: torch.device
) -> None:
    runs, ranks, outputs, width, size = CASES[case]
    adapters = residents(ranks, outputs, width, device=device)
    y, x = _inputs(runs, outputs, width, torch.float32, device)
    wanted = adapters.changed64(y, x, runs)
    tiles, cut = adapters.tiles(runs, size), shrinking.Blocks(columns=columns, k=k)
    low_rank = adapters.gathered(x, tiles, partial(shrink_triton, blocks=cut), 2)
    expand_triton(y, adapters.columns, low_rank, tiles, blocks=expanding.Blocks(n=n))
    assert_close(y, wanted, width)


def test_without_adapters_nothing_changes(device: torch.device) -> None:
    adapters = residents([[8]], [16], 32, device=device)
    y, _ = _inputs([(3, None)], [16], 32, torch.float32, device)
    found = y.clone()
    expand_triton(found, adapters.columns, None, adapters.tiles([(3, None)], 16))
    assert torch.equal(found, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("rows_alike")
def test_a_token_does_not_depend_on_its_neighbours(
    dtype: torch.dtype, device: torch.device
) -> None:
    ranks, outputs, width = [[16, 16], [5, 40]], [48, 20], 300
    runs: list[Run] = [(2, 1), (13, 0), (1, None), (3, 1)]
    adapters = residents(ranks, outputs, width, dtype, device)
    y, x = _inputs(runs, outputs, width, dtype, device)

    def run(y: torch.Tensor, x: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
        tiles, y = adapters.tiles(runs, 16), y.clone()
        expand_triton(y, adapters.columns, adapters.gathered(x, tiles, shrink_triton, 4), tiles)
        return y

    together = run(y, x, runs)
    token_adapters = [adapter for length, adapter in runs for _ in range(length)]
    for t, adapter in enumerate(token_adapters):
        alone = run(y[t : t + 1], x[t : t + 1], [(1, adapter)])
        assert torch.equal(alone[0], together[t]), f"token {t}"


def test_launched_again_it_does_what_the_memory_then_says(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, width, num_tokens = [32, 16], 64, 20
    first = residents([[8, 8], [16, 4]], outputs, width, device=device)
    runs: list[Run] = [(7, 0), (12, 1), (1, None)]
    tiles = first.tiles(runs, 16, num_tiles=8)
    y, x = _inputs(runs, outputs, width, torch.float32, device)
    kernels = [record(monkeypatch, k) for k in (shrinking._shrink, expanding._expand)]
    planes = torch.full((2, num_tokens, 2 * 16), NAN, device=device)
    shrink_triton(x, first.a, 2, tiles, first.table, planes)
    expand_triton(
        y, first.columns, LowRank(planes, False, first.b, first.table, has_vectors=True), tiles
    )

    then = residents([[3, 7], [9, 9]], outputs, width, device=device, seed=1)
    assert then.a.shape == first.a.shape
    then_runs: list[Run] = [(1, None), (1, 1), (16, 0), (1, 1)]
    then_tiles = then.tiles(then_runs, 16, num_tiles=8)
    then_y, then_x = _inputs(then_runs, outputs, width, torch.float32, device, seed=1)
    wanted = then.changed64(then_y, then_x, then_runs)
    y.fill_(0)
    y[: len(then_y)], x[: len(then_x)] = then_y, then_x
    planes.fill_(NAN)
    pairs = [(first.a, then.a), (first.b, then.b)]
    pairs += [
        (getattr(first.table, name), getattr(then.table, name))
        for name in ("size_A", "rank_AP", "scale_AP", "affine_AP")
    ]
    pairs += [
        (getattr(tiles, n), getattr(then_tiles, n)) for n in ("start_I", "count_I", "adapter_I")
    ]
    for static, content in pairs:
        static.copy_(content)
    for replay in kernels:
        replay()
    assert_close(y[: len(then_y)], wanted, width)
    assert not y[len(then_y) :].any()


@settings(max_examples=12, derandomize=True)
@given(data=st.data())
def test_any_batch(data: st.DataObject, device: torch.device) -> None:
    num_parts = data.draw(st.integers(1, 3))
    outputs = data.draw(st.lists(st.integers(1, 40), min_size=num_parts, max_size=num_parts))
    parts = st.lists(st.integers(0, 64), min_size=num_parts, max_size=num_parts)
    ranks = data.draw(st.lists(parts, min_size=1, max_size=4))
    adapter = st.none() | st.integers(0, len(ranks) - 1)
    runs = data.draw(st.lists(st.tuples(st.integers(1, 40), adapter), min_size=1, max_size=5))
    width, size = data.draw(st.integers(1, 150)), data.draw(st.sampled_from([16, 32]))
    num_planes, has_vectors = data.draw(st.integers(1, 4)), data.draw(st.booleans())
    adapters = residents(ranks, outputs, width, device=device, has_vectors=has_vectors)
    y, x = _inputs(runs, outputs, width, torch.float32, device)
    merged_y, low_rank = adapters.merged(y, x)
    expand_triton(merged_y, adapters.columns, low_rank, adapters.tiles(runs, size))
    wanted = adapters.changed64(y, x, runs)
    assert_close(merged_y, wanted, width)
    for form in FORMS:
        args = (runs, ranks, outputs, width, size, form, num_planes, torch.float32, device)
        assert_close(_apply(*args, has_vectors=has_vectors)[0], wanted, width)


def _inputs(
    runs: Sequence[Run],
    outputs: Sequence[int],
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens = sum(length for length, _ in runs)
    y = normal((num_tokens, sum(outputs)), dtype, device, 2 * seed)
    return y, normal((num_tokens, width), dtype, device, 2 * seed + 1)


def _apply(
    runs: Sequence[Run],
    ranks: Sequence[Sequence[int]],
    outputs: Sequence[int],
    width: int,
    size: int,
    form: str,
    num_planes: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    has_vectors: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a form gives, and what it should."""
    shrink_form, expand_form = FORMS[form]
    adapters = residents(ranks, outputs, width, dtype, device, has_vectors=has_vectors)
    y, x = _inputs(runs, outputs, width, dtype, device)
    wanted = adapters.changed64(y, x, runs)
    tiles = adapters.tiles(runs, size)
    low_rank = adapters.gathered(x, tiles, shrink_form, num_planes)
    expand_form(y, adapters.columns, low_rank, tiles)
    return y, wanted
