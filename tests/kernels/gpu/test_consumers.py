"""Kernels that read a layer's output and add its low-rank change there, against float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from loramux_server.kernels.decoder import Norm
from loramux_server.kernels.gpu.residual_norm import (
    NormScratch,
    residual_norm,
    residual_norm_triton,
)
from loramux_server.kernels.gpu.rms_norm import rms_norm_triton
from loramux_server.kernels.gpu.rope_write import HeadNorms, rope_write, rope_write_triton
from loramux_server.kernels.gpu.shrink import shrink
from loramux_server.kernels.gpu.silu_mul import silu_mul, silu_mul_triton
from loramux_server.kernels.gpu.tiles import LowRank, Tiles
from loramux_server.kernels.pointwise import rms_norm
from tests.kernels.gpu.dtypes import DTYPES
from tests.support.low_rank import NAN, Residents, Run, assert_close, guarded, normal, residents

INPUT = 80
"""Width of what the layers took."""
EPSILON = 1e-5
HALVES = ["none", "gathered", "merged"]
"""How h comes; where it is gathered there are factors and shifts, too."""
BATCHES: dict[str, tuple[list[Run], int]] = {
    "one-token": ([(1, 0)], 16),
    "base": ([(3, None)], 16),
    "decode": ([(2, 0), (1, None), (1, 2), (9, 1)], 16),
    "single": ([(2, 0), (1, None), (1, 2), (3, 1)], 1),
    "prefill": ([(1, 2), (37, 0), (3, None), (17, 1)], 32),
}
SILU = {"definition": silu_mul, "triton": silu_mul_triton}
RESIDUAL: dict[str, Callable[..., None]] = {
    "definition": residual_norm,
    "triton": residual_norm_triton,
}
ROPE = {"definition": rope_write, "triton": rope_write_triton}
NORMS = {"definition": rms_norm, "triton": rms_norm_triton}


@dataclass
class Output:
    """What base layers gave for a batch, and the half of its change that is left."""

    y: torch.Tensor
    low_rank: LowRank | None
    tiles: Tiles
    changed64: torch.Tensor
    """What y is with the change."""


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("form", SILU)
@pytest.mark.parametrize("batch", BATCHES)
def test_silu_mul(
    batch: str, form: str, half: str, dtype: torch.dtype, device: torch.device
) -> None:
    runs, size = BATCHES[batch]
    adapters = _residents([[8, 3], [0, 20], [33, 1]], [70, 70], half, dtype, device)
    given = _output(adapters, runs, size, half, dtype, device)
    out = guarded(torch.full((len(given.y), 70), NAN, dtype=dtype, device=device))
    SILU[form](given.y, given.low_rank, given.tiles, out.inner)
    gate, up = given.changed64.chunk(2, dim=1)
    assert_close(out.inner, gate * torch.sigmoid(gate) * up, INPUT, roundings=4)
    assert out.is_intact()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("form", RESIDUAL)
@pytest.mark.parametrize("batch", BATCHES)
def test_residual_norm(
    batch: str, form: str, half: str, dtype: torch.dtype, device: torch.device
) -> None:
    runs, size = BATCHES[batch]
    width = 1300
    adapters = _residents([[8], [20], [33]], [width], half, dtype, device)
    given = _output(adapters, runs, size, half, dtype, device)
    before = normal((len(given.y), width), dtype, device, seed=3)
    weight = normal((width,), dtype, device, seed=4)
    hidden, out = guarded(before), guarded(torch.full_like(before, NAN))
    scratch = NormScratch.make(len(given.y), width, device)
    norm = Norm(weight, EPSILON)
    RESIDUAL[form](hidden.inner, given.y, given.low_rank, given.tiles, norm, out.inner, scratch)
    assert_close(hidden.inner, before.double().cpu() + given.changed64, INPUT)
    assert_close(out.inner, _norm64(hidden.inner, weight), 64)
    assert hidden.is_intact()
    assert out.is_intact()

    alone = before.clone()
    RESIDUAL[form](alone, given.y, given.low_rank, given.tiles, None, None, scratch)
    assert torch.equal(alone, hidden.inner)
    assert not scratch.arrived_T.any()


@pytest.mark.parametrize("form", NORMS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (1, 5, 576), (2, 3, 64)])
def test_rms_norm(
    shape: tuple[int, ...], form: str, dtype: torch.dtype, device: torch.device
) -> None:
    x = 3 * normal(shape, dtype, device, seed=0)
    weight = normal(shape[-1:], dtype, device, seed=1)
    found = NORMS[form](x, weight, EPSILON)
    assert found.dtype == dtype
    assert_close(found, _norm64(x, weight), 64)


def test_a_norm_rounds_before_its_weight_is_applied(device: torch.device) -> None:
    x = normal((40, 96), torch.float16, device, seed=0)
    weight = normal((96,), torch.float16, device, seed=1)
    twice = rms_norm(x, weight, EPSILON)
    assert _share_equal(_norm64(x, weight).to(device, torch.float16), twice) < 0.9
    assert _share_equal(rms_norm_triton(x, weight, EPSILON), twice) > 0.99

    hidden, out = x.clone(), torch.empty_like(x)
    tiles = residents([[1]], [96], 1, device=device).tiles([(40, None)], 16)
    norm = Norm(weight, EPSILON)
    scratch = NormScratch.make(len(x), x.shape[1], device)
    residual_norm_triton(hidden, torch.zeros_like(x), None, tiles, norm, out, scratch)
    assert _share_equal(out, twice) > 0.99


@pytest.mark.parametrize("form", NORMS)
def test_rms_norm_of_what_was_turned(form: str, device: torch.device) -> None:
    x = normal((20, 7), torch.float32, device, seed=0).T
    weight = normal((20,), torch.float32, device, seed=1)
    wanted = _norm64(x, weight).to(device, torch.float32)
    torch.testing.assert_close(NORMS[form](x, weight, EPSILON), wanted)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("form", ROPE)
@pytest.mark.parametrize("batch", BATCHES)
def test_rope_write(
    batch: str, form: str, half: str, has_norms: bool, dtype: torch.dtype, device: torch.device
) -> None:
    runs, size = BATCHES[batch]
    heads, key_heads, width, num_slots = 3, 2, 24, 100
    adapters = _residents(
        [[8, 3, 1], [0, 20, 5], [33, 0, 9]], [heads * width] + [key_heads * width] * 2,
        half, dtype, device,
    )  # fmt: skip
    given = _output(adapters, runs, size, half, dtype, device)
    num_tokens = len(given.y)
    norms = None
    if has_norms:
        query, key = (normal((width,), dtype, device, seed=seed) for seed in (5, 6))
        norms = HeadNorms(Norm(query, EPSILON), Norm(key, 10 * EPSILON))
    angle = normal((num_tokens, width), torch.float32, device, seed=7)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    slot = torch.randperm(num_slots, generator=torch.Generator().manual_seed(8))[:num_tokens]
    q = guarded(torch.full((num_tokens, heads, width), NAN, dtype=dtype, device=device))
    kept = normal((2, num_slots, key_heads, width), dtype, device, seed=9)
    k, v = guarded(kept[0]), guarded(kept[1])
    ROPE[form](
        given.y, given.low_rank, given.tiles, norms, cos, sin, slot.to(device),
        q.inner, k.inner, v.inner,
    )  # fmt: skip

    wanted = given.changed64.view(num_tokens, -1, width)
    turned = wanted[:, : heads + key_heads]
    if norms is not None:
        weight = torch.stack([norms.query.weight_K] * heads + [norms.key.weight_K] * key_heads)
        epsilon = torch.tensor([EPSILON] * heads + [10 * EPSILON] * key_heads, dtype=torch.float64)
        square = turned.pow(2).mean(-1, keepdim=True) + epsilon[:, None]
        turned = turned / square.sqrt() * weight.double().cpu()
    a, b = turned.chunk(2, dim=-1)
    cos, sin = cos.double().cpu()[:, None], sin.double().cpu()[:, None]
    turned = turned * cos + torch.cat((-b, a), dim=-1) * sin
    assert_close(q.inner, turned[:, :heads], INPUT, roundings=6)
    for cache, before, written in (
        (k, kept[0], turned[:, heads:]),
        (v, kept[1], wanted[:, heads + key_heads :]),
    ):
        assert_close(cache.inner[slot.to(device)], written, INPUT, roundings=6)
        others = torch.ones(num_slots, dtype=torch.bool)
        others[slot] = False
        assert torch.equal(cache.inner.cpu()[others], before.cpu()[others])
        assert cache.is_intact()
    assert q.is_intact()


def _norm64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double().cpu()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double().cpu()


def _share_equal(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a == b).double().mean())


def _residents(
    ranks: Sequence[Sequence[int]],
    outputs: Sequence[int],
    half: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Residents:
    return residents(ranks, outputs, INPUT, dtype, device, has_vectors=half == "gathered")


def _output(
    adapters: Residents,
    runs: Sequence[Run],
    size: int,
    half: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Output:
    if half == "none":
        runs = [(length, None) for length, _ in runs]
    num_tokens = sum(length for length, _ in runs)
    y = normal((num_tokens, adapters.columns[-1]), dtype, device, seed=1)
    x = normal((num_tokens, INPUT), dtype, device, seed=2)
    changed64 = adapters.changed64(y, x, runs)
    low_rank, tiles = None, adapters.tiles(runs, size)
    if half == "gathered":
        low_rank = adapters.gathered(x, tiles, shrink, num_planes=2)
    elif half == "merged":
        y, low_rank = adapters.merged(y, x)
    return Output(y, low_rank, tiles, changed64)
