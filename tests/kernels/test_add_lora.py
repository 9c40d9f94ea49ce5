"""The segmented low-rank matmul: the definition, and every form of it, against float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.add_lora_cpu import SHORT, AddLoraCpu
from loramux_server.kernels.backend import AddLora
from loramux_server.lora.row_allocator import rows_of
from loramux_server.lora.segments import Segments

FORMS: dict[str, Callable[[], AddLora]] = {"definition": lambda: add_lora, "cpu": AddLoraCpu}


@dataclass
class Problem:
    """A batch over a slab whose unused rows are NaN."""

    y: torch.Tensor
    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    columns: list[int]
    segments: Segments
    ranks: list[list[int]]

    def run(self, form: AddLora) -> torch.Tensor:
        y = self.y.clone()
        form(y, self.x, self.a, self.b, self.columns, self.segments, self.segments.rank_GSP[0])
        return y

    def reference(self) -> torch.Tensor:
        """Return the result in float64, a token and an output at a time."""
        y, x, a, b = (tensor.double() for tensor in (self.y, self.x, self.a, self.b))
        num_parts = len(self.columns) - 1
        for s, ranks in enumerate(self.ranks):
            row, size = int(self.segments.row_S[s]), int(self.segments.size_S[s])
            for t in range(self.segments.start_S[s], self.segments.end_S[s]):
                for p, rank in enumerate(ranks):
                    first = num_parts * row + p * size
                    h = (a[first : first + rank] * x[t]).sum(-1)
                    n0, n1 = self.columns[p], self.columns[p + 1]
                    y[t, n0:n1] += (h[:, None] * b[row : row + rank, n0:n1]).sum(0)
        return y


def problem(
    lengths: list[int], ranks: list[list[int]], outputs: list[int], width: int, *, gap: int = 1
) -> Problem:
    """Return segments of `lengths` tokens with `gap` base tokens before each and at the end.

    Segment s has rank ranks[s][p] in part p. Every weight that must not be read is NaN.
    """
    torch.manual_seed(0)
    num_parts = len(outputs)
    sizes = [rows_of(max(1, *rank)) for rank in ranks]
    rows = (8 + np.cumsum([0, *sizes[:-1]])).tolist() if ranks else []
    num_rows = 16 + sum(sizes)
    a = torch.full((num_parts * num_rows, width), float("nan"))
    b = torch.full((num_rows, sum(outputs)), float("nan"))
    columns = [0, *np.cumsum(outputs).tolist()]
    for row, size, part_ranks in zip(rows, sizes, ranks, strict=True):
        for p, rank in enumerate(part_ranks):
            first = num_parts * row + p * size
            a[first : first + rank] = torch.randn(rank, width)
            b[row : row + rank, columns[p] : columns[p + 1]] = torch.randn(rank, outputs[p])
    starts, end = [], 0
    for length in lengths:
        starts.append(end + gap)
        end += gap + length
    num_tokens = end + gap
    int32 = np.int32
    segments = Segments(
        start_S=np.array(starts, int32),
        end_S=np.array(starts, int32) + np.array(lengths, int32),
        row_S=np.array(rows, int32),
        size_S=np.array(sizes, int32),
        rank_GSP=np.array(ranks, int32).reshape(1, len(ranks), num_parts),
    )
    return Problem(
        torch.randn(num_tokens, columns[-1]), torch.randn(num_tokens, width), a, b, columns,
        segments, ranks,
    )  # fmt: skip


def same(rank: int, parts: int = 1) -> list[int]:
    return [rank] * parts


PROBLEMS = {
    "one-token": ([1], [same(8)], [24], 16),
    "rank-1": ([1, 1], [same(1), same(1)], [7], 5),
    "odd-sizes": ([1, 3, 2], [same(3), same(13), same(7)], [17], 33),
    "decode-distinct": ([1] * 16, [same(16, 3)] * 16, [48, 16, 16], 48),
    "decode-mixed-ranks": ([1] * 5, [same(r, 2) for r in (1, 8, 64, 5, 32)], [40, 40], 40),
    "parts-without-adapter": ([1, 2], [[8, 0, 3], [0, 0, 16]], [20, 8, 8], 24),
    "prefill": ([SHORT + 1, 50], [same(8, 2), same(24, 2)], [32, 16], 64),
    "prefill-beside-decode": ([1, 40, 1, SHORT, 1], [same(r, 2) for r in (4, 8, 64, 2, 1)],
                              [32, 16], 64),
    "wide": ([1, 2], [same(16), same(8)], [1000], 500),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives(form: str, name: str) -> None:
    given = problem(*PROBLEMS[name])
    width = given.x.shape[1]
    wanted = given.reference()
    bound = 1e-5 * (1 + wanted.abs()) * max(1.0, width / 64) ** 0.5
    # A rank row or a column too many would be NaN here.
    assert ((given.run(FORMS[form]()).double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_the_base_are_untouched(form: str) -> None:
    given = problem([1, 30, 2], [same(8), same(4), same(64)], [40], 32, gap=3)
    is_base = torch.ones(len(given.y), dtype=torch.bool)
    for start, end in zip(given.segments.start_S, given.segments.end_S, strict=True):
        is_base[start:end] = False
    assert torch.equal(given.run(FORMS[form]())[is_base], given.y[is_base])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    crowd = problem([1] * 9, [same(r, 2) for r in (64, 8, 16, 1, 5, 32, 8, 3, 40)], [96, 40], 64)
    together = crowd.run(AddLoraCpu())
    for s, start in enumerate(crowd.segments.start_S):
        alone = Problem(**vars(crowd) | {"segments": only(crowd.segments, s)})
        assert torch.equal(alone.run(AddLoraCpu())[start], together[start])


def test_a_half_precision_output_is_added_to_in_float32() -> None:
    given = problem([1, 20], [same(8), same(16)], [24], 32)
    half = Problem(**vars(given) | {"y": given.y.bfloat16(), "x": given.x.bfloat16()})
    exact = Problem(**vars(half) | {"y": half.y.float(), "x": half.x.float()}).reference()
    error = (half.run(AddLoraCpu()).double() - exact).abs()
    assert (error <= 2**-7 * exact.abs() + 0.05).all()


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_is_copied(form: str) -> None:
    """What is allocated is as large as the activations: less than one adapter's weights."""
    given = problem([20, 1, 1], [same(64)] * 3, [512], 512)
    operation = FORMS[form]()
    with CountNewTensors() as counter:
        given.run(operation)
    num_tokens, num_outputs = given.y.shape
    assert counter.total >= num_tokens * num_outputs  # it does count: the copy of y
    assert counter.total <= num_tokens * (num_outputs + 2 * 64)
    assert counter.total < 64 * (512 + 512)


class CountNewTensors(TorchDispatchMode):
    """Counts the elements of the tensors that operations make, views not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(result, torch.Tensor):
            is_new = result.untyped_storage().data_ptr() not in inputs
            self.total += is_new * result.numel()
        return result


def only(segments: Segments, s: int) -> Segments:
    return Segments(
        segments.start_S[s : s + 1],
        segments.end_S[s : s + 1],
        segments.row_S[s : s + 1],
        segments.size_S[s : s + 1],
        segments.rank_GSP[:, s : s + 1],
    )
