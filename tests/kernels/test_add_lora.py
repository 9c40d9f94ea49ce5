"""The segmented low-rank matmul: the definition, and every form of it, against float64."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_server.kernels.add_lora import add_lora
from loramux_server.kernels.backend import AddLora
from loramux_server.kernels.cpu.add_lora import AddLoraCpu
from loramux_server.lora.affine import FACTOR, SHIFT
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.segments import Int32, Residence, Segments
from loramux_server.lora.slab import DTYPES, vectors, weights
from loramux_server.wire.weight_format import WeightFormat

FORMS: dict[str, Callable[[], AddLora]] = {"definition": lambda: add_lora, "cpu": AddLoraCpu}


@dataclass
class Problem:
    """A batch over a slab whose unused rows are NaN."""

    y: torch.Tensor
    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    columns: Int32
    segments: Segments
    ranks: list[list[int]]

    def run(self, form: AddLora) -> torch.Tensor:
        y = self.y.clone()
        form(y, self.x, self.a, self.b, self.columns, self.segments, 0)
        return y

    def reference(self) -> torch.Tensor:
        """Return the result in float64, a token and an output at a time."""
        y, x = self.y.double(), self.x.double()
        num_parts = len(self.columns) - 1
        segments = self.segments
        for s, ranks in enumerate(self.ranks):
            row, size = int(segments.row_S[s]), int(segments.size_S[s])
            dtype = DTYPES[WeightFormat(segments.format_S[s])]
            b = weights(self.b[row : row + size], dtype).double()
            for t in range(segments.start_S[s], segments.end_S[s]):
                for p, rank in enumerate(ranks):
                    first = num_parts * row + p * size
                    a = weights(self.a[first : first + size], dtype).double()
                    h = (a[:rank] * x[t]).sum(-1) * float(segments.scale_GSP[0, s, p])
                    n0, n1 = self.columns[p], self.columns[p + 1]
                    y[t, n0:n1] += (h[:, None] * b[:rank, n0:n1]).sum(0)
                    kinds = 0 if segments.affine_GSP is None else segments.affine_GSP[0, s, p]
                    factor_N, shift_N = vectors(self.b, row + size).double()[:, n0:n1]
                    if kinds & FACTOR:
                        y[t, n0:n1] *= factor_N
                    if kinds & SHIFT:
                        y[t, n0:n1] += shift_N
        return y


def problem(
    lengths: list[int],
    ranks: list[list[int]],
    outputs: list[int],
    width: int,
    *,
    gap: int = 1,
    formats: Sequence[WeightFormat] = (WeightFormat.FLOAT32,),
    has_vectors: bool = False,
) -> Problem:
    """Return segments of `lengths` tokens with `gap` base tokens before each and at the end.

    Segment s has rank ranks[s][p] in part p; the adapters rest in `formats` in turn, and with
    `has_vectors` most have factors and shifts of some parts. Every weight that must not be read is
    NaN.
    """
    torch.manual_seed(0)
    num_parts = len(outputs)
    columns = np.cumsum([0, *outputs], dtype=np.int32)
    adapters, row = [], 8
    for number, (part_ranks, form) in enumerate(zip(ranks, itertools.cycle(formats), strict=False)):
        size = RowSize().rows_of(max(1, *part_ranks), form.item_bytes)
        rank_GP = np.array([part_ranks], np.int32)
        scale_GP = np.linspace(0.25, 1.5, num_parts, dtype=np.float32)[None] * (1 + number % 3 / 4)
        kinds_GP = None
        if has_vectors and number != 2:
            kinds_GP = (np.arange(3, 3 + num_parts, dtype=np.int32)[None] + number) % 4
        adapters.append(Residence(row, size, form, rank_GP, scale_GP, affine_GP=kinds_GP))
        row += size + 8
    a = torch.full((num_parts * (row + 8), width), float("nan"))
    b = torch.full((row + 8, sum(outputs)), float("nan"))
    for adapter in adapters:
        dtype = DTYPES[adapter.format]
        for p, rank in enumerate(adapter.rank_GP[0].tolist()):
            first = num_parts * adapter.row + p * adapter.size
            part_a = weights(a[first : first + adapter.size], dtype)
            part_b = weights(b[adapter.row : adapter.row + adapter.size], dtype)
            part_a[:rank] = torch.randn(rank, width).to(dtype)
            part_b[:rank, columns[p] : columns[p + 1]] = torch.randn(rank, outputs[p]).to(dtype)
            for kind, vector_N in enumerate(vectors(b, adapter.row + adapter.size)):
                if adapter.affine_GP is not None and adapter.affine_GP[0, p] & (1 << kind):
                    vector_N[columns[p] : columns[p + 1]] = 1 - kind + torch.randn(outputs[p]) / 4
    starts, end = [], 0
    for length in lengths:
        starts.append(end + gap)
        end += gap + length
    num_tokens = end + gap
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    return Problem(
        torch.randn(num_tokens, sum(outputs)), torch.randn(num_tokens, width), a, b, columns,
        Segments.build(starts, ends, adapters), ranks,
    )  # fmt: skip


def same(rank: int, parts: int = 1) -> list[int]:
    return [rank] * parts


PROBLEMS = {
    "one-token": ([1], [same(8)], [32], 16),
    "rank-1": ([1, 1], [same(1), same(1)], [16], 48),
    "odd-widths": ([1, 1], [same(1), same(1)], [7], 5),
    "odd-sizes": ([1, 3, 2], [same(3), same(13), same(7)], [17], 33),
    "decode-distinct": ([1] * 16, [same(16, 3)] * 16, [48, 16, 16], 48),
    "decode-mixed-ranks": ([1] * 5, [same(r, 2) for r in (1, 8, 64, 5, 32)], [48, 32], 48),
    "parts-without-adapter": ([1, 2], [[8, 0, 3], [0, 0, 16]], [32, 16, 16], 32),
    "prefill": ([13, 50], [same(8, 2), same(24, 2)], [32, 16], 64),
    "prefill-beside-decode": ([1, 40, 1, 12, 1], [same(r, 2) for r in (4, 8, 64, 2, 1)],
                              [32, 16], 64),
    "prefill-wide": ([30, 5], [same(5, 2), same(64, 2)], [96, 176], 64),
    "prefill-without-adapter": ([20, 30], [[0, 12, 0], [8, 0, 8]], [64, 32, 96], 32),
    "wide": ([1, 2], [same(16), same(8)], [1008], 512),
    "vectors-alone": ([1, 9, 2], [same(0, 3)] * 3, [48, 16, 32], 32),
    "more-parts-than-lines": ([2, 1], [same(5, 4), same(9, 4)], [16, 16, 16, 16], 16),
}  # fmt: skip


@pytest.mark.parametrize("has_vectors", [False, True], ids=["low-rank", "vectors"])
@pytest.mark.parametrize("formats", [[form] for form in WeightFormat] + [list(WeightFormat)])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives(
    form: str, name: str, formats: list[WeightFormat], has_vectors: bool
) -> None:
    given = problem(*PROBLEMS[name], formats=formats, has_vectors=has_vectors)
    width = given.x.shape[1]
    wanted = given.reference()
    # What is multiplied and added to afterwards may have been larger.
    bound = (1e-4 if has_vectors else 4e-5) * (1 + wanted.abs()) * max(1.0, width / 64) ** 0.5
    # A rank row or a column too many would be NaN here.
    assert ((given.run(FORMS[form]()).double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_threads_share_the_work_and_do_none_of_it_twice(name: str) -> None:
    given = problem(*PROBLEMS[name], has_vectors=True)
    num_threads = torch.get_num_threads()
    made = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            made.append(given.run(AddLoraCpu()))
    finally:
        torch.set_num_threads(num_threads)
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_the_base_are_untouched(form: str) -> None:
    ranks = [same(8), same(4), same(64)]
    given = problem([1, 30, 2], ranks, [40], 32, gap=3, has_vectors=True)
    is_base = torch.ones(len(given.y), dtype=torch.bool)
    for start, end in zip(given.segments.start_S, given.segments.end_S, strict=True):
        is_base[start:end] = False
    assert torch.equal(given.run(FORMS[form]())[is_base], given.y[is_base])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    ranks = [same(r, 2) for r in (64, 8, 16, 1, 5, 32, 8, 3, 40)]
    crowd = problem([1] * 9, ranks, [96, 48], 64, has_vectors=True)
    together = crowd.run(AddLoraCpu())
    for s, start in enumerate(crowd.segments.start_S):
        alone = Problem(**vars(crowd) | {"segments": crowd.segments.select(np.arange(9) == s)})
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
    # A block of the rank rows of one segment is laid aside, however many tokens it has.
    assert counter.total <= num_tokens * (num_outputs + 2 * 64) + 64 * 64 * torch.get_num_threads()
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
