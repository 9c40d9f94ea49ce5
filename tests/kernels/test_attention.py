"""Attention over a paged cache: the definition, and every form of it, against float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from loramux_server.kernels.attention import (
    AttentionBatch,
    AttentionForm,
    paged_attention,
    write_cache,
)
from loramux_server.kernels.backend import PagedAttention, WriteCache
from loramux_server.kernels.cpu.attention import PagedAttentionCpu
from loramux_server.kernels.cpu.write_cache import WriteCacheCpu
from tests.support.attention import SINKS, problem

FORMS: dict[str, Callable[[], PagedAttention]] = {
    "definition": lambda: paged_attention,
    "cpu": PagedAttentionCpu,
}
WRITES: dict[str, Callable[[], WriteCache]] = {
    "definition": lambda: write_cache,
    "cpu": WriteCacheCpu,
}


PROBLEMS = {
    "first-token": problem([1], [1]),
    "decode": problem([1, 1, 1], [10, 3, 33]),
    "whole-prompt": problem([7], [7]),
    "chunk": problem([5], [23]),
    "mixed": problem([1, 5, 1, 9], [10, 20, 63, 9]),
    "one-kv-head": problem([1, 4], [17, 8], heads=6, kv_heads=1),
    "no-sharing": problem([1, 4], [17, 8], heads=3, kv_heads=3),
    "odd-widths": problem([1, 3], [19, 5], width=13, value_width=7),
    "large-blocks": problem([1, 3], [100, 5], block_size=32),
    "tiny-blocks": problem([1, 3], [20, 5], block_size=1),
}
VARIANTS = {
    "plain": AttentionForm(scale=0.25),
    "window": AttentionForm(scale=0.25, window=4),
    "softcap": AttentionForm(scale=1.0, softcap=2.0),
    "both": AttentionForm(scale=1.0, window=9, softcap=2.0),
    "sinks": AttentionForm(scale=0.25, sinks_H=SINKS),
    "sinks, window": AttentionForm(scale=0.25, window=4, sinks_H=SINKS),
    "all": AttentionForm(scale=1.0, window=9, softcap=2.0, sinks_H=SINKS),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives(form: str, name: str, variant: str) -> None:
    given = PROBLEMS[name]
    variant_form = given.fitted(VARIANTS[variant])
    out = FORMS[form]()(given.q, given.keys, given.values, given.batch, variant_form)
    # A slot of another request or of nobody would be NaN here.
    torch.testing.assert_close(out.double(), given.reference(variant_form), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    given = problem([1] * 7, [40, 3, 17, 64, 1, 29, 8])
    operation = PagedAttentionCpu()
    together = operation(given.q, given.keys, given.values, given.batch, VARIANTS["plain"])
    for b in range(7):
        alone = AttentionBatch(
            np.array([0, 1], np.int32), given.batch.context_B[b : b + 1],
            np.ascontiguousarray(given.batch.table_BM[b : b + 1]), given.batch.block_size,
            given.batch.slot_T[b : b + 1],
        )  # fmt: skip
        out = operation(given.q[b : b + 1], given.keys, given.values, alone, VARIANTS["plain"])
        assert torch.equal(out[0], together[b])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_sinks_may_have_another_type_than_queries(dtype: torch.dtype) -> None:
    given = PROBLEMS["mixed"]
    form = AttentionForm(scale=0.25, sinks_H=SINKS[:4].to(dtype))
    for make in FORMS.values():
        out = make()(given.q, given.keys, given.values, given.batch, form)
        torch.testing.assert_close(out.double(), given.reference(form), rtol=1e-5, atol=1e-5)


def test_scores_far_apart_do_not_overflow() -> None:
    given = problem([1], [50])
    given.q.mul_(1000)
    out = PagedAttentionCpu()(given.q, given.keys, given.values, given.batch, VARIANTS["plain"])
    torch.testing.assert_close(
        out.double(), given.reference(VARIANTS["plain"]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("width", [16, 64, 24])
@pytest.mark.parametrize("form", WRITES)
def test_keys_and_values_go_to_their_slots_from_slices_of_a_packed_output(
    form: str, width: int
) -> None:
    given = problem([3, 1, 200], [7, 1, 230], width=width, value_width=2 * width)
    num_tokens = len(given.batch.slot_T)
    packed = torch.randn(num_tokens, 2 * 2 * 3 * width)
    k = packed[:, : 2 * width].view(num_tokens, 2, width)
    v = packed[:, 2 * width : 6 * width].view(num_tokens, 2, 2 * width)
    keys, values = given.keys.clone(), given.values.clone()
    WRITES[form]()(keys, values, k, v, given.batch)
    for cache, before, written in ((keys, given.keys, k), (values, given.values, v)):
        wanted = before.clone()
        wanted[given.batch.slot_T] = written
        assert torch.equal(cache.nan_to_num(0.5), wanted.nan_to_num(0.5))
