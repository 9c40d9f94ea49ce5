"""Requests to attend for, and what they see in float64."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from loramux_server.kernels.attention import AttentionBatch, AttentionForm, write_cache

SINKS = torch.tensor([1.5, -2.0, 0.0, 4.0, 30.0, -30.0]).repeat(4)
"""Sinks that weigh as much as a few tokens, all, or nothing."""


@dataclass
class Problem:
    """Requests whose keys and values lie scattered in a cache that is NaN elsewhere."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    batch: AttentionBatch
    dense: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of each request, in order."""

    def fitted(self, form: AttentionForm, device: torch.device | None = None) -> AttentionForm:
        """Return `form`, with as many sinks as there are query heads if it has any."""
        if form.sinks_H is None:
            return form
        return replace(form, sinks_H=form.sinks_H[: self.q.shape[1]].to(device))

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
                    if form.sinks_H is not None:
                        scores = torch.cat([scores, form.sinks_H[h : h + 1].cpu().double()])
                    weights = torch.softmax(scores, 0)[: position + 1 - first]
                    out[t, h] = weights @ values[first : position + 1, j].double()
        return out


def problem(
    queries: list[int], contexts: list[int], *, heads: int = 4, kv_heads: int = 2, width: int = 16,
    value_width: int = 16, block_size: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Problem:  # fmt: skip
    """Return requests with `queries` new tokens each, of `contexts` tokens in all."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    longest = -(-max(contexts) // block_size)
    num_blocks = len(queries) * longest + 3
    table = rng.permutation(num_blocks)[: len(queries) * longest].reshape(len(queries), longest)
    start = np.cumsum([0, *queries]).astype(np.int32)
    dense = [
        (
            torch.randn(context, kv_heads, width).to(dtype),
            torch.randn(context, kv_heads, value_width).to(dtype),
        )
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
    keys = torch.full((num_blocks * block_size, kv_heads, width), float("nan"), dtype=dtype)
    values = torch.full((num_blocks * block_size, kv_heads, value_width), float("nan"), dtype=dtype)
    for b, (k, v) in enumerate(dense):
        old = torch.from_numpy(batch.context_slots(b))[: contexts[b] - queries[b]]
        keys[old], values[old] = k[: len(old)], v[: len(old)]
    new = [(k[-n:], v[-n:]) for (k, v), n in zip(dense, queries, strict=True)]
    write_cache(keys, values, torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), batch)
    q = torch.randn(int(start[-1]), heads, width).to(dtype)
    return Problem(q, keys, values, batch, dense)
