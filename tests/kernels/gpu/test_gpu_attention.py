"""Attention on a GPU: each kernel and its definition, against float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from loramux_server.kernels.attention import AttentionForm
from loramux_server.kernels.gpu import decode_attention as decode
from loramux_server.kernels.gpu import prefill_attention as prefill
from loramux_server.kernels.gpu.decode_attention import DecodeBlocks
from loramux_server.kernels.gpu.device_batch import make_query_tiles, tile_size
from loramux_server.kernels.gpu.write_cache import write_cache, write_cache_triton
from tests.support.attention import SINKS, Problem, problem
from tests.support.device_attention import CANARY, check, give

DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
VARIANTS = {
    "plain": AttentionForm(scale=0.25),
    "window": AttentionForm(scale=0.25, window=21),
    "softcap": AttentionForm(scale=1.0, softcap=2.0),
    "both": AttentionForm(scale=1.0, window=9, softcap=2.0),
    "all": AttentionForm(scale=1.0, window=9, softcap=2.0, sinks_H=SINKS.to(torch.bfloat16)),
}
WITH_SINKS = AttentionForm(scale=0.25, sinks_H=SINKS)
SMALL = DecodeBlocks(context=16, least_share=16)
"""Many blocks, and shares, in a short context."""


DECODES = {
    "first-token": problem([1], [1]),
    "lengths": problem([1] * 6, [1, 15, 16, 17, 63, 200], block_size=16),
    "no-sharing": problem([1, 1], [33, 50], heads=2, kv_heads=2, width=64, value_width=64),
    "three-heads": problem([1, 1], [7, 70], heads=6, kv_heads=2, width=40, value_width=24),
    "eight-heads": problem([1, 1], [37, 5], heads=8, kv_heads=1, width=128, value_width=128),
    "many-heads": problem([1], [37], heads=20, kv_heads=1, width=16, value_width=7),
}
"""What each form decodes; of float32, as are the rest where nothing else is said."""
PREFILLS = {
    "first-token": problem([1], [1]),
    "prompt": problem([9], [9]),
    "chunk": problem([11], [111], block_size=16),
    "mixed": problem([1, 5, 1, 9], [10, 20, 63, 9]),
    "three-heads": problem([5, 1], [70, 7], heads=6, kv_heads=2, width=40, value_width=24),
    "eight-heads": problem([6], [29], heads=8, kv_heads=1, width=128, value_width=128),
    "no-sharing": problem([21, 2], [37, 3], heads=2, kv_heads=2, width=64, value_width=64),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", DECODES)
def test_decode_is_what_float64_gives(name: str, variant: str, device: torch.device) -> None:
    form = DECODES[name].fitted(VARIANTS[variant], device)
    given = give(DECODES[name], device)
    given.decode(form, 3, decode.decode_attention)
    check(given, DECODES[name], form)
    given = give(DECODES[name], device)
    given.decode(form, 3, blocks=SMALL)
    check(given, DECODES[name], form)


@pytest.mark.parametrize("shares", [1, 3, 8])
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("least", [16, 64])
def test_shares_of_a_context_may_be_empty(
    shares: int, window: int, least: int, device: torch.device
) -> None:
    form = DECODES["lengths"].fitted(replace(WITH_SINKS, window=window), device)
    given = give(DECODES["lengths"], device)
    given.decode(form, shares, blocks=replace(SMALL, least_share=least))
    check(given, DECODES["lengths"], form)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PREFILLS)
def test_prefill_is_what_float64_gives(name: str, variant: str, device: torch.device) -> None:
    form = PREFILLS[name].fitted(VARIANTS[variant], device)
    given = give(PREFILLS[name], device)
    given.prefill(form, prefill.prefill_attention)
    check(given, PREFILLS[name], form)
    given = give(PREFILLS[name], device)
    given.prefill(form, blocks=SMALL)
    check(given, PREFILLS[name], form)


@pytest.mark.parametrize("heads", [16, 20, 71])
def test_heads_that_do_not_fit_beside_a_tile_get_their_own_program(
    heads: int, device: torch.device
) -> None:
    many = problem([19, 1], [27, 5], heads=2 * heads, kv_heads=2)
    given = give(many, device, size=16)
    given.prefill(VARIANTS["both"])
    check(given, many, VARIANTS["both"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["plain", "both", "all"])
def test_numbers_of_every_type_are_served(
    dtype: torch.dtype, variant: str, device: torch.device
) -> None:
    given_problem = problem(
        [1, 13, 1, 1], [90, 33, 7, 45], heads=8, kv_heads=2, width=64, value_width=64, dtype=dtype,
    )  # fmt: skip
    form = given_problem.fitted(VARIANTS[variant], device)
    given = give(given_problem, device, size=tile_size(8, 2))
    given.prefill(form)
    check(given, given_problem, form)
    given = give(given_problem, device, size=tile_size(8, 2), shortest=2)
    given.decode(form, 4)
    given.prefill(form)
    check(given, given_problem, form)


def test_each_half_of_a_mixed_batch_leaves_the_rows_of_the_other(device: torch.device) -> None:
    mixed = PREFILLS["mixed"]
    is_single = np.repeat(np.diff(mixed.batch.query_start_B) == 1, [1, 5, 1, 9])
    for runs, is_written in (
        ((decode.decode_attention, decode.decode_attention_triton), is_single),
        ((prefill.prefill_attention, prefill.prefill_attention_triton), ~is_single),
    ):
        for run in runs:
            given = give(mixed, device, shortest=2)
            if is_written is is_single:
                given.decode(VARIANTS["plain"], 2, run)
            else:
                given.prefill(VARIANTS["plain"], run)
            is_kept = (given.out[: len(mixed.q)] == CANARY).flatten(1).all(1).cpu().numpy()
            assert (is_kept == ~is_written).all()


def test_scores_far_apart_do_not_overflow(device: torch.device) -> None:
    far = problem([1, 3], [50, 20])
    far.q.mul_(1000)
    for form in (VARIANTS["plain"], VARIANTS["softcap"], far.fitted(WITH_SINKS, device)):
        given = give(far, device, shortest=2)
        given.decode(form, 2)
        given.prefill(form)
        torch.testing.assert_close(
            given.out[:4].cpu().double(), far.reference(form), rtol=1e-3, atol=1e-3
        )


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    queries, contexts = [1, 6, 1, 1, 9], [40, 33, 17, 64, 9]
    together = problem(queries, contexts)
    form = AttentionForm(scale=0.25, window=19)
    given = give(together, device, shortest=2)
    given.decode(form, 3, blocks=SMALL)
    given.prefill(form, blocks=SMALL)
    for b in range(len(queries)):
        rows = slice(*together.batch.query_start_B[b : b + 2].tolist())
        batch = type(together.batch)(
            np.array([0, queries[b]], np.int32), together.batch.context_B[b : b + 1],
            together.batch.table_BM[b : b + 1], 4, together.batch.slot_T[rows],
        )  # fmt: skip
        alone = Problem(
            together.q[rows], together.keys, together.values, batch, together.dense[b : b + 1]
        )
        single = give(alone, device, shortest=2)
        single.decode(form, 3, blocks=SMALL)
        single.prefill(form, blocks=SMALL)
        assert torch.equal(single.out[: queries[b]], given.out[rows])


@pytest.mark.usefixtures("rows_alike")
@pytest.mark.parametrize("window", [0, 19])
@pytest.mark.parametrize("cut", [1, 22, 24])
def test_a_row_does_not_depend_on_how_its_prompt_was_cut(
    cut: int, window: int, device: torch.device
) -> None:
    whole = problem([37], [37])
    form = whole.fitted(replace(WITH_SINKS, window=window), device)
    given = give(whole, device)
    given.prefill(form, blocks=SMALL)
    batch = replace(
        whole.batch,
        query_start_B=np.array([0, 37 - cut], np.int32),
        slot_T=whole.batch.slot_T[cut:],
    )
    chunk = give(replace(whole, q=whole.q[cut:], batch=batch), device)
    chunk.prefill(form, blocks=SMALL)
    assert torch.equal(chunk.out[: 37 - cut], given.out[cut:37])


def test_a_second_launch_with_the_same_arguments_sees_what_memory_holds_then(
    device: torch.device,
) -> None:
    form = VARIANTS["window"]
    first = problem([1, 5, 1, 1], [30, 20, 61, 2])
    second = problem([3, 1, 1, 3], [61, 9, 44, 3], seed=1)
    given = give(first, device, shortest=2, num_tiles=3)
    later = give(second, device, shortest=2, num_tiles=3)
    scratch = given.scratch(3)

    def launch() -> None:
        caches = given.q, given.keys, given.values
        decode.decode_attention_triton(*caches, given.batch, form, given.out, scratch, blocks=SMALL)
        prefill.prefill_attention_triton(*caches, given.batch, form, given.out, blocks=SMALL)

    launch()
    check(given, first, form)
    for old, new in zip(given.tensors(), later.tensors(), strict=True):
        old.copy_(new)
    given.buffer.fill_(CANARY)
    launch()
    check(given, second, form)


@pytest.mark.parametrize("write", [write_cache, write_cache_triton])
@pytest.mark.parametrize(("heads", "width", "value_width"), [(2, 16, 40), (11, 13, 7)])
def test_keys_and_values_go_to_their_slots(
    write: Callable[..., None], heads: int, width: int, value_width: int, device: torch.device
) -> None:
    given = problem([3, 1, 20], [7, 1, 25], kv_heads=heads, width=width, value_width=value_width)
    slot = given.batch.slot_T.clone()
    slot[[2, 9]] = -1
    packed = torch.randn(len(slot), heads * (width + value_width) + 8)
    k = packed[:, : heads * width].unflatten(1, (heads, width))
    v = packed[:, heads * width : -8].unflatten(1, (heads, value_width))
    # One more slot than the cache has, before it and behind it.
    caches = [
        torch.nn.functional.pad(cache, (0, 0, 0, 0, 1, 1), value=CANARY).to(device)
        for cache in (given.keys, given.values)
    ]
    before = [cache.clone() for cache in caches]
    write(caches[0][1:-1], caches[1][1:-1], k.to(device), v.to(device), slot.to(device))
    is_written = slot >= 0
    for cache, wanted, written in zip(caches, before, (k, v), strict=True):
        wanted[1 + slot[is_written].to(device)] = written[is_written].to(device)
        assert torch.equal(cache.nan_to_num(0.5), wanted.nan_to_num(0.5))


@pytest.mark.parametrize("size", [1, 4, 16])
def test_tiles_have_every_token_once_and_none_of_two_requests(size: int) -> None:
    border = np.cumsum([0, 1, 33, 0, 16, 1, 5]).astype(np.int32)
    request, start = make_query_tiles(border, size)
    end = np.minimum(start + size, border[request + 1])
    tokens = np.concatenate([np.arange(*run) for run in zip(start, end, strict=True)])
    assert tokens.tolist() == list(range(border[-1]))
    assert (border[request] <= start).all()
    assert request.dtype == start.dtype == np.int32
    longer, _ = make_query_tiles(border, size, shortest=2)
    assert set(longer.tolist()) == {1, 3, 5}


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 8, 64), (32, 8, 16), (9, 3, 21)])
def test_a_tile_fills_its_rows(heads: int, kv_heads: int, size: int) -> None:
    assert tile_size(heads, kv_heads) == size
