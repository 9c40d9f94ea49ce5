"""Attention over a paged cache: the definition, and every form of it, against float64."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from loramux_server.kernels.attention import (
    AttentionBatch,
    AttentionForm,
    paged_attention,
    write_cache,
)
from loramux_server.kernels.attention_cpu import PagedAttentionCpu
from loramux_server.kernels.backend import PagedAttention, WriteCache
from loramux_server.kernels.write_cache_cpu import WriteCacheCpu

FORMS: dict[str, Callable[[], PagedAttention]] = {
    "definition": lambda: paged_attention,
    "cpu": PagedAttentionCpu,
}
WRITES: dict[str, Callable[[], WriteCache]] = {
    "definition": lambda: write_cache,
    "cpu": WriteCacheCpu,
}


@dataclass
class Problem:
    """Requests whose keys and values lie scattered in a cache that is NaN elsewhere."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    batch: AttentionBatch
    dense: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of each request, in order."""

    def reference(self, form: AttentionForm) -> torch.Tensor:
        """Return the result in float64, a token and a head at a time."""
        out = torch.empty(len(self.q), self.q.shape[1], self.values.shape[2], dtype=torch.double)
        for b, (keys, values) in enumerate(self.dense):
            start, end = self.batch.query_start_B[b : b + 2].tolist()
            for t in range(start, end):
                position = len(keys) - (end - t)
                first = max(0, position - form.window + 1) if form.window else 0
                for h in range(self.q.shape[1]):
                    j = h * keys.shape[1] // self.q.shape[1]
                    scores = keys[first : position + 1, j].double() @ self.q[t, h].double()
                    scores *= form.scale
                    if form.softcap:
                        scores = form.softcap * torch.tanh(scores / form.softcap)
                    out[t, h] = torch.softmax(scores, 0) @ values[first : position + 1, j].double()
        return out


def problem(
    queries: list[int], contexts: list[int], *, heads: int = 4, kv_heads: int = 2, width: int = 16,
    value_width: int = 16, block_size: int = 4,
) -> Problem:  # fmt: skip
    """Return requests with `queries` new tokens each, of `contexts` tokens in all."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    longest = -(-max(contexts) // block_size)
    num_blocks = len(queries) * longest + 3
    table = rng.permutation(num_blocks)[: len(queries) * longest].reshape(len(queries), longest)
    start = np.cumsum([0, *queries]).astype(np.int32)
    dense = [
        (torch.randn(context, kv_heads, width), torch.randn(context, kv_heads, value_width))
        for context in contexts
    ]
    slots: list[int] = []
    for b, context in enumerate(contexts):
        slots += [
            int(table[b, c // block_size]) * block_size + c % block_size
            for c in range(context - queries[b], context)
        ]
    batch = AttentionBatch(
        start, np.array(contexts, np.int32), table.astype(np.int32), block_size,
        torch.tensor(slots),
    )  # fmt: skip
    keys = torch.full((num_blocks * block_size, kv_heads, width), float("nan"))
    values = torch.full((num_blocks * block_size, kv_heads, value_width), float("nan"))
    for b, (k, v) in enumerate(dense):
        old = torch.from_numpy(batch.context_slots(b))[: contexts[b] - queries[b]]
        keys[old], values[old] = k[: len(old)], v[: len(old)]
    new = [(k[-n:], v[-n:]) for (k, v), n in zip(dense, queries, strict=True)]
    write_cache(keys, values, torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), batch)
    q = torch.randn(int(start[-1]), heads, width)
    return Problem(q, keys, values, batch, dense)


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
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives(form: str, name: str, variant: str) -> None:
    given = PROBLEMS[name]
    out = FORMS[form]()(given.q, given.keys, given.values, given.batch, VARIANTS[variant])
    # A slot of another request or of nobody would be NaN here.
    torch.testing.assert_close(
        out.double(), given.reference(VARIANTS[variant]), rtol=1e-5, atol=1e-5
    )


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
