"""Parts of a batch that take turns in a layer, and see its linear layers together."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.lora.segments import Residence, Segments
from loramux_server.models.padding import MAX_PAIRS, PaddedLayout, group_texts
from loramux_server.models.part_scheduler import PartScheduler
from loramux_server.models.recurrent.parts import Rows
from loramux_server.models.step import Step
from loramux_server.wire.weight_format import WeightFormat

FLOAT32 = WeightFormat.FLOAT32
ROWS: list[tuple[Rows, ...]] = [(slice(0, 2),), (torch.tensor([3, 2]),)]
"""Of the parts in a batch of four tokens."""


def scheduler_of() -> PartScheduler:
    return PartScheduler(Step(num_tokens=4))


@dataclass
class Layer:
    """One of them."""

    both: "Doubling"
    number: int
    side: int = 0

    def compute_all(self, x: torch.Tensor) -> torch.Tensor:
        self.both.seen.append(x[0, :, 0].tolist())
        return 2 * x + self.number


class Doubling:
    """Stands for two linear layers with one input; notes the batches that it was given."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.layers = [Layer(self, number) for number in (0, 1)]


def part_of(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[None, :, None]


def test_a_linear_layer_is_given_the_whole_batch_and_each_part_gets_its_own() -> None:
    scheduler, doubling = scheduler_of(), Doubling()

    def run(values: list[float]) -> list[list[float]]:
        x = part_of(values)
        return [scheduler.wait(layer, x).flatten().tolist() for layer in doubling.layers]

    found = scheduler.run([lambda: run([1.0, 2.0]), lambda: run([4.0, 3.0])], ROWS)
    assert doubling.seen == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert found == [[[2.0, 4.0], [3.0, 5.0]], [[8.0, 6.0], [9.0, 7.0]]]
    assert not scheduler.is_running


def test_a_part_that_fails_ends_all_and_the_next_batch_is_run() -> None:
    scheduler, doubling = scheduler_of(), Doubling()
    ended: list[str] = []

    def waits() -> torch.Tensor:
        try:
            return scheduler.wait(doubling.layers[0], part_of([1.0, 2.0]))
        finally:
            ended.append("waited")

    def fails() -> None:
        raise RuntimeError("no memory is left")

    with pytest.raises(RuntimeError, match="no memory"):
        scheduler.run([waits, fails], ROWS)
    assert (ended, scheduler.is_running, doubling.seen) == (["waited"], False, [])
    ended.clear()
    other = part_of([4.0, 3.0])
    found = scheduler.run([waits, lambda: scheduler.wait(doubling.layers[0], other)], ROWS)
    assert [y.flatten().tolist() for y in found] == [[2.0, 4.0], [8.0, 6.0]]
    assert ended == ["waited"]


def test_parts_that_are_less_far_go_first_and_are_alone_until_they_meet_the_others() -> None:
    scheduler, doubling = scheduler_of(), Doubling()
    first, second = doubling.layers

    def far() -> list[float]:
        return scheduler.wait(second, part_of([1.0, 2.0])).flatten().tolist()

    def near() -> list[float]:
        return scheduler.wait(second, scheduler.wait(first, part_of([3.0, 4.0]))).flatten().tolist()

    found = scheduler.run([far, near], [(slice(0, 2),), (slice(2, 4),)])
    assert doubling.seen == [[3.0, 4.0], [1.0, 2.0, 6.0, 8.0]]
    assert found == [[3.0, 5.0], [13.0, 17.0]]


def test_parts_of_scattered_tokens_that_go_ways_of_their_own_are_refused() -> None:
    scheduler, doubling = scheduler_of(), Doubling()
    first, second = doubling.layers
    x, other = part_of([1.0, 2.0]), part_of([4.0, 3.0])
    with pytest.raises(NotImplementedError, match="different paths for different lengths"):
        scheduler.run(
            [lambda: scheduler.wait(first, x), lambda: scheduler.wait(second, other)], ROWS
        )
    assert not scheduler.is_running


def test_rows_that_are_no_tokens_have_the_adapter_of_their_part() -> None:
    residence = [
        Residence(row, 1, FLOAT32, np.ones((1, 1), np.int32), np.ones((1, 1), np.float32))
        for row in (7, 9)
    ]
    step = Step(num_tokens=4, segments=Segments.build([0, 3], [1, 4], residence))
    scheduler = PartScheduler(step)
    scheduler.has_other_rows = True
    seen: list[list[tuple[int, int, int]]] = []

    class Noting(Layer):
        def compute_all(self, x: torch.Tensor) -> torch.Tensor:
            assert step.segments
            borders = step.segments.start_S, step.segments.end_S, step.segments.row_S
            seen.append(list(zip(*(each.tolist() for each in borders), strict=True)))
            return super().compute_all(x)

    layer = Noting(Doubling(), 0)

    def run(rows: int) -> int:
        return scheduler.wait(layer, torch.zeros(1, rows, 1)).shape[1]

    rows: list[tuple[Rows, ...]] = [(slice(0, 1),), (slice(1, 3),), (slice(3, 4),)]
    # As many rows as tokens in all, and not as many of each part.
    assert scheduler.run([lambda: run(2), lambda: run(1), lambda: run(1)], rows) == [2, 1, 1]
    assert scheduler.run([lambda: run(5), lambda: run(5), lambda: run(5)], rows) == [5, 5, 5]
    assert seen == [[(0, 2, 7), (3, 4, 9)], [(0, 5, 7), (10, 15, 9)]]
    assert scheduler.run([lambda: run(4)], [(slice(0, 1),)]) == [4]
    assert seen[-1] == [(0, 4, 7)]


def test_texts_side_by_side_give_their_tokens_alone() -> None:
    scheduler, doubling = scheduler_of(), Doubling()
    layout = PaddedLayout.of([(2, 3), (0, 2)], torch.device("cpu"))

    def run() -> list[float]:
        filled = layout.pad_tokens(torch.tensor([1, 2, 3, 4]), 9)
        assert filled.tolist() == [[3, 9], [1, 2]]
        assert layout.attention_mask().tolist() == [[1, 0], [1, 1]]
        y = scheduler.wait(doubling.layers[0], filled[..., None].float())
        assert y.shape == (2, 2, 1)
        found: list[float] = y.flatten().tolist()
        return found

    def run_alone() -> list[float]:
        found: list[float] = scheduler.wait(doubling.layers[0], part_of([4.0])).flatten().tolist()
        return found

    found = scheduler.run([run, run_alone], [(layout,), (slice(3, 4),)], [1, 0])
    assert doubling.seen == [[1.0, 2.0, 3.0, 4.0]]
    assert found == [[6.0, 0.0, 2.0, 4.0], [8.0]]


@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=40), data=st.data())
def test_each_text_is_read_once_and_little_is_filled_up(
    lengths: list[int], data: st.DataObject
) -> None:
    alone = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    groups = group_texts(lengths, alone)
    assert sorted(number for group in groups for number in group) == [*range(len(lengths))]
    for group in groups:
        width = max(lengths[number] for number in group)
        padded = len(group) * width
        filled = padded - sum(lengths[number] for number in group)
        assert len(group) == 1 or not any(alone[number] for number in group)
        assert len(group) == 1 or filled <= max(1024, padded // 4)
        assert len(group) == 1 or padded * width <= MAX_PAIRS
