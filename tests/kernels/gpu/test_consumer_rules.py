"""Kernels that add a low-rank change where they read an output: what a graph and a batch need."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.gpu import residual_norm, rope_write, silu_mul
from loramux_server.kernels.gpu.rope_write import HeadNorms
from loramux_server.kernels.gpu.shrink import shrink
from loramux_server.kernels.gpu.tiles import LowRank, Tiles
from tests.kernels.gpu.dtypes import DTYPES
from tests.support.low_rank import Run, normal, residents
from tests.support.replay import record

INPUT = 80
"""Width of what the layers took."""
Outputs = tuple[torch.Tensor, ...]


def _rows(shape: Sequence[int], like: torch.Tensor, first: int) -> torch.Tensor:
    """Return what the tokens of a batch from `first` on have, whatever the batch."""
    rows = normal((64, *shape[1:]), like.dtype, like.device, seed=3)
    return rows[first : first + shape[0]].clone()


def _silu(y: torch.Tensor, low_rank: LowRank | None, tiles: Tiles, first: int) -> Outputs:
    out = y.new_zeros(len(y), y.shape[1] // 2)
    silu_mul.silu_mul_triton(y, low_rank, tiles, out)
    return (out,)


def _residual(y: torch.Tensor, low_rank: LowRank | None, tiles: Tiles, first: int) -> Outputs:
    hidden, out = _rows(y.shape, y, first), torch.zeros_like(y)
    norm = Norm(_rows((1, y.shape[1]), y, 0)[0], 1e-5)
    scratch = residual_norm.NormScratch.make(len(y), y.shape[1], y.device)
    residual_norm.residual_norm_triton(hidden, y, low_rank, tiles, norm, out, scratch)
    return hidden, out


def _rope(y: torch.Tensor, low_rank: LowRank | None, tiles: Tiles, first: int) -> Outputs:
    q, k, v = (y.new_zeros(len(y), heads, 24) for heads in (3, 2, 2))
    norm = Norm(_rows((1, 24), y, 0)[0], 1e-5)
    angle = _rows((len(y), 24), y, first)
    slot = torch.arange(len(y), device=y.device)
    rope_write.rope_write_triton(
        y, low_rank, tiles, HeadNorms(norm, norm), angle.cos(), angle.sin(), slot, q, k, v
    )
    return q, k, v


CONSUMERS: dict[str, tuple[Callable[..., Outputs], Any, list[int]]] = {
    "silu_mul": (_silu, silu_mul._silu_mul, [70, 70]),
    "residual_norm": (_residual, residual_norm._residual_norm, [1300]),
    "rope_write": (_rope, rope_write._rope_write, [72, 48, 48]),
}


@pytest.mark.usefixtures("rows_alike")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_token_does_not_depend_on_its_neighbours(
    consumer: str, dtype: torch.dtype, device: torch.device
) -> None:
    run, _, outputs = CONSUMERS[consumer]
    runs: list[Run] = [(2, 1), (9, 0), (1, None)]
    adapters = residents([[8] * len(outputs), [21] * len(outputs)], outputs, INPUT, dtype, device)
    y = normal((12, adapters.columns[-1]), dtype, device, seed=1)
    tiles = adapters.tiles(runs, 16)
    low_rank = adapters.gathered(normal((12, INPUT), dtype, device, seed=2), tiles, shrink, 2)
    together = run(y, low_rank, tiles, 0)
    token_adapters = [adapter for length, adapter in runs for _ in range(length)]
    for t, adapter in enumerate(token_adapters):
        own = replace(low_rank, planes_STJ=low_rank.planes_STJ[:, t : t + 1])
        alone = run(y[t : t + 1], own, adapters.tiles([(1, adapter)], 16), t)
        for found, wanted in zip(alone, together, strict=True):
            assert torch.equal(found[0], wanted[t]), f"token {t}"


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_launched_again_it_does_what_the_memory_then_says(
    consumer: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, kernel, outputs = CONSUMERS[consumer]
    ranks = [[8] * len(outputs), [21] * len(outputs)]
    first = residents(ranks, outputs, INPUT, device=device)
    then = residents(ranks[::-1], outputs, INPUT, device=device, seed=1)
    y = normal((20, first.columns[-1]), torch.float32, device, seed=1)
    x = normal((20, INPUT), torch.float32, device, seed=2)
    tiles = first.tiles([(7, 0), (12, 1), (1, None)], 16, num_tiles=8)
    then_tiles = then.tiles([(1, None), (1, 1), (16, 0), (2, 1)], 16, num_tiles=8)
    low_rank = first.gathered(x, tiles, shrink, 2)
    then_low_rank = then.gathered(-x, then_tiles, shrink, 2)
    wanted = run(-y, then_low_rank, then_tiles, 0)

    replay = record(monkeypatch, kernel)
    found = run(y, low_rank, tiles, 0)
    assert all(not torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    for static, content in (
        (y, -y),
        (low_rank.planes_STJ, then_low_rank.planes_STJ),
        (low_rank.b_RN, then_low_rank.b_RN),
        (low_rank.table.size_A, then_low_rank.table.size_A),
        (low_rank.table.rank_AP, then_low_rank.table.rank_AP),
        (low_rank.table.scale_AP, then_low_rank.table.scale_AP),
        (low_rank.table.affine_AP, then_low_rank.table.affine_AP),
        (tiles.start_I, then_tiles.start_I),
        (tiles.count_I, then_tiles.count_I),
        (tiles.adapter_I, then_tiles.adapter_I),
        (tiles.adapter_T, then_tiles.adapter_T),
    ):
        static.copy_(content)
    if consumer == "residual_norm":
        found[0].copy_(_rows(y.shape, y, 0))
    replay()
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
