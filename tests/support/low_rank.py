"""Adapters of one group of layers in a slab, and batches of their tokens, for kernels of a GPU.

Whatever a kernel must not read is NaN: rows of nobody, what rounding up to a granule adds, columns
of parts that an adapter leaves as they are, and planes where no h is.

Legend: as in `kernels/gpu/tiles.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from loramux_server.kernels.gpu.tiles import BASE, LowRank, Tiles
from loramux_server.lora.adapter_table import GroupTable
from loramux_server.lora.affine import FACTOR, SHIFT
from loramux_server.lora.row_allocator import GRANULE, RowSize
from loramux_server.lora.slab import vectors

NAN = float("nan")
CANARY = 7.0
Run = tuple[int, int | None]
"""Tokens in a row with one adapter, by its place in the list of adapters; None is the base."""


@dataclass(frozen=True, slots=True)
class Residents:
    """The adapters of a group, and where they lie."""

    ranks: Sequence[Sequence[int]]
    """Of each adapter in each part."""
    numbers: list[int]
    columns: list[int]
    a: torch.Tensor
    b: torch.Tensor
    table: GroupTable
    has_vectors: bool
    """Whether some have factors and shifts."""

    @property
    def num_parts(self) -> int:
        return len(self.columns) - 1

    @property
    def num_columns(self) -> int:
        """Columns of the longest h."""
        return self.num_parts * int(self.table.size_A[self.numbers].max())

    def tiles(self, runs: Sequence[Run], size: int, num_tiles: int | None = None) -> Tiles:
        """Return the tiles of `runs`; one or more of no tokens come last."""
        cut, start = [], 0
        for length, adapter in runs:
            number = BASE if adapter is None else self.numbers[adapter]
            for begin in range(0, length, size):
                cut.append((start + begin, min(size, length - begin), number))
            start += length
        cut += [(start, 0, self.numbers[0])] * ((num_tiles or len(cut) + 1) - len(cut))
        device = self.a.device
        start_I, count_I, adapter_I = torch.tensor(
            cut, dtype=torch.int32, device=device
        ).T.contiguous()
        adapter_T = adapter_I.repeat_interleave(count_I)
        return Tiles(start_I, count_I, adapter_I, adapter_T, size)

    def gathered(
        self, x_TK: torch.Tensor, tiles: Tiles, shrink: Callable[..., None], num_planes: int = 1
    ) -> LowRank:
        """Return the half that is left when `shrink` has applied A."""
        shape = (num_planes, len(x_TK), self.num_columns)
        planes_STJ = torch.full(shape, NAN, device=x_TK.device)
        shrink(x_TK, self.a, self.num_parts, tiles, self.table, planes_STJ)
        return LowRank(planes_STJ, False, self.b, self.table, self.has_vectors)

    def merged(self, y_TN: torch.Tensor, x_TK: torch.Tensor) -> tuple[torch.Tensor, LowRank]:
        """Return `y_TN`, and the half that is left, as views of one matrix that has both."""
        both = torch.cat((y_TN, x_TK @ self.a.T), dim=1)
        width = y_TN.shape[1]
        low_rank = LowRank(both[None, :, width:], True, self.b, self.table, self.has_vectors)
        return both[:, :width], low_rank

    def changed64(
        self, y_TN: torch.Tensor, x_TK: torch.Tensor, runs: Sequence[Run]
    ) -> torch.Tensor:
        """Return what becomes of `y_TN`, in float64, one token and part at a time."""
        changed_TN = y_TN.double().cpu()
        adapters = [adapter for length, adapter in runs for _ in range(length)]
        a_RK, b_RN, scale_AP = (x.double().cpu() for x in (self.a, self.b, self.table.scale_AP))
        for token, adapter in enumerate(adapters):
            if adapter is None:
                continue
            number, x_K = self.numbers[adapter], x_TK[token].double().cpu()
            row, size = number * GRANULE, int(self.table.size_A[number])
            for part, (n0, n1) in enumerate(pairwise(self.columns)):
                rank = self.ranks[adapter][part]
                first = self.num_parts * row + part * size
                h_J = (a_RK[first : first + rank] * x_K).sum(1)
                b_JN = b_RN[row : row + rank, n0:n1]
                y_N = changed_TN[token, n0:n1]
                y_N += (h_J[:, None] * b_JN).sum(0) * scale_AP[number, part]
                if self.has_vectors:
                    kinds = int(self.table.affine_AP[number, part])
                    factor_N, shift_N = vectors(self.b, row + size)[:, n0:n1].double().cpu()
                    if kinds & FACTOR:
                        y_N *= factor_N
                    if kinds & SHIFT:
                        y_N += shift_N
        return changed_TN


def residents(
    ranks: Sequence[Sequence[int]],
    outputs: Sequence[int],
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    seed: int = 0,
    *,
    has_vectors: bool = True,
) -> Residents:
    """Return adapters of these ranks, with a hole before each, longer from one to the next.

    With `has_vectors`, of two neighbouring parts or adapters no two have the same of factors and
    shifts.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, deviation: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * deviation

    num_parts, columns = len(outputs), [0, *accumulate(outputs)]
    sizes = [RowSize().rows_of(max(1, *part_ranks)) for part_ranks in ranks]
    numbers, number = [], 0
    for hole, size in enumerate(sizes):
        numbers.append(number + hole)
        number += hole + size // GRANULE + 1
    a_RK = torch.full((num_parts * number * GRANULE, width), NAN)
    b_RN = torch.full((number * GRANULE + 4, columns[-1]), NAN)
    table = GroupTable(
        torch.full((number,), 64, dtype=torch.int32),
        torch.full((number, num_parts + 1), 64, dtype=torch.int32),
        torch.full((number, num_parts + 1), NAN),
        torch.full((number, num_parts + 1), FACTOR | SHIFT, dtype=torch.int32),
    )
    b_RN = b_RN.to(dtype)
    for place, (number, size, part_ranks) in enumerate(zip(numbers, sizes, ranks, strict=True)):
        table.size_A[number] = size
        for part, rank in enumerate(part_ranks):
            table.rank_AP[number, part] = rank
            table.scale_AP[number, part] = 0.5 + part
            first = num_parts * number * GRANULE + part * size
            n0, n1 = columns[part : part + 2]
            a_RK[first : first + rank] = normal(rank, width, width**-0.5)
            row = number * GRANULE
            b_RN[row : row + rank, n0:n1] = normal(rank, n1 - n0, max(1, rank) ** -0.5)
            table.affine_AP[number, part] = kinds = (3 + part + place) % 4
            for kind, vector_N in enumerate(vectors(b_RN, row + size)):
                if kinds & (1 << kind):
                    vector_N[n0:n1] = 1 - kind + normal(1, n1 - n0, 0.25)[0]
    known = (table.size_A, table.rank_AP, table.scale_AP, table.affine_AP)
    return Residents(
        ranks, numbers, columns, a_RK.to(device, dtype), b_RN.to(device),
        GroupTable(*(x.to(device) for x in known)), has_vectors,
    )  # fmt: skip


def normal(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int
) -> torch.Tensor:
    """Return random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A tensor within a larger one."""

    inner: torch.Tensor
    _outer: torch.Tensor
    _inside: tuple[slice, ...]

    def is_intact(self) -> bool:
        """Return whether nothing was written around it."""
        around = self._outer.clone()
        around[self._inside] = CANARY
        return bool((around == CANARY).all())


def guarded(content: torch.Tensor) -> Guarded:
    """Return a copy of `content` with canaries on all sides."""
    outer = content.new_full([size + 4 for size in content.shape], CANARY)
    inside = (slice(2, -2),) * content.ndim
    outer[inside] = content
    return Guarded(outer[inside], outer, inside)


def assert_close(
    found: torch.Tensor, wanted64: torch.Tensor, width: int, roundings: int = 2
) -> None:
    """Hold `found` to a reference in float64.

    Args:
        found: What a kernel gives.
        wanted64: What it should be.
        width: Of the sums, in numbers.
        roundings: To a 16-bit type on the way.
    """
    eps = 1e-5 if found.dtype == torch.float32 else roundings * torch.finfo(found.dtype).eps
    bound = eps * (1 + wanted64.abs()) * max(1.0, width / 64) ** 0.5
    error = (found.double().cpu() - wanted64).abs()
    assert bool((error <= bound).all()), (
        f"off by up to {float((error / bound).max())} times the bound"
    )
