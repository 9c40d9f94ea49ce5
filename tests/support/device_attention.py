"""Requests to attend for, in memory of a GPU.

Wherever a kernel must not read lies NaN, and where it must not write a number that stays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch

from loramux_server.kernels.attention import AttentionForm
from loramux_server.kernels.gpu.attend import Blocks
from loramux_server.kernels.gpu.decode_attention import DecodeScratch, decode_attention_triton
from loramux_server.kernels.gpu.device_batch import DeviceBatch, make_query_tiles
from loramux_server.kernels.gpu.prefill_attention import prefill_attention_triton
from tests.support.attention import Problem

CANARY = 7.0
SPARE = 2
"""Requests, tokens and tiles that a batch has room for and does not use."""
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass
class Given:
    """A problem in memory of the device, with room for more."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    batch: DeviceBatch
    buffer: torch.Tensor
    """The output, between canaries."""

    @property
    def out(self) -> torch.Tensor:
        return self.buffer[1:-1]

    def decode(
        self,
        form: AttentionForm,
        shares: int,
        run: Callable[..., None] = decode_attention_triton,
        **how: Blocks,
    ) -> None:
        """Attend for requests of one token, in as many shares."""
        scratch = self.scratch(shares)
        run(self.q, self.keys, self.values, self.batch, form, self.out, scratch, **how)

    def prefill(
        self,
        form: AttentionForm,
        run: Callable[..., None] = prefill_attention_triton,
        **how: Blocks,
    ) -> None:
        """Attend for the tokens of the tiles."""
        run(self.q, self.keys, self.values, self.batch, form, self.out, **how)

    def scratch(self, shares: int) -> DecodeScratch:
        """Return scratch for the batch, full of NaN."""
        scratch = DecodeScratch.make(
            len(self.batch.context_B), self.q.shape[1], self.values.shape[2], shares, self.q.device
        )
        scratch.out_BHPE.fill_(float("nan"))
        scratch.weight_BHP.fill_(float("nan"))
        return scratch

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything that a step fills in."""
        yield from (self.q, self.keys, self.values)
        for field in fields(self.batch):
            value = getattr(self.batch, field.name)
            if isinstance(value, torch.Tensor):
                yield value


def give(
    problem: Problem, device: torch.device, *, size: int = 4, shortest: int = 1, num_tiles: int = 0
) -> Given:
    """Put `problem` where kernels read it, with tiles of `size` tokens."""
    host, num_tokens = problem.batch, len(problem.q)
    request, start = make_query_tiles(host.query_start_B, size, shortest)
    spare_tiles = num_tiles - len(request) if num_tiles else SPARE

    def pad(array: np.ndarray, count: int, value: int) -> torch.Tensor:
        widths = [(0, count)] + [(0, 0)] * (array.ndim - 1)
        return torch.from_numpy(np.pad(array, widths, constant_values=value)).to(device)

    # As a model gives it: a slice of a wider output.
    heads, width = problem.q.shape[1:]
    packed = torch.full((num_tokens + SPARE, heads * width + 24), float("nan"))
    packed[:num_tokens, : heads * width] = problem.q.reshape(num_tokens, -1)
    packed = packed.to(problem.q.dtype).to(device)
    buffer = torch.full((num_tokens + SPARE + 2, heads, problem.values.shape[2]), CANARY)
    return Given(
        packed[:, : heads * width].unflatten(1, (heads, width)),
        problem.keys.to(device, copy=True),
        problem.values.to(device, copy=True),
        DeviceBatch(
            query_start_B=pad(host.query_start_B, SPARE, num_tokens),
            context_B=pad(host.context_B, SPARE, 0),
            table_BM=pad(host.table_BM, SPARE, 0),
            slot_T=pad(host.slot_T.numpy(), SPARE, -1),
            block_size=host.block_size,
            tile_request_I=pad(request, spare_tiles, -1),
            tile_start_I=pad(start, spare_tiles, 0),
            tile_size=size,
        ),
        buffer.to(problem.q.dtype).to(device),
    )


def check(given: Given, problem: Problem, form: AttentionForm) -> None:
    """Assert that the output is right, and nothing else was written."""
    num_tokens = len(problem.q)
    tolerance = TOLERANCES[problem.q.dtype]
    torch.testing.assert_close(
        given.out[:num_tokens].cpu().double(), problem.reference(form), rtol=tolerance,
        atol=tolerance,
    )  # fmt: skip
    assert (given.buffer[0] == CANARY).all()
    assert (given.buffer[num_tokens + 1 :] == CANARY).all()
    for cache, before in ((given.keys, problem.keys), (given.values, problem.values)):
        assert torch.equal(cache.cpu().nan_to_num(CANARY), before.nan_to_num(CANARY))
