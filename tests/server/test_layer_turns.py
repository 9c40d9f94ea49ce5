"""Parts of a batch that take turns in a layer, and see its linear layers together."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loramux_server.models.parts import Rows
from loramux_server.models.turns import Turns

ROWS: list[Rows] = [slice(0, 2), torch.tensor([3, 2])]
"""Of the parts in a batch of four tokens."""


class Doubling:
    """Stands for two linear layers with one input; notes the batches that it was given."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.layers: list[Any] = [SimpleNamespace(packed=self, part=part) for part in (0, 1)]

    def part(self, x: torch.Tensor, part: int) -> torch.Tensor:
        self.seen.append(x[0, :, 0].tolist())
        return 2 * x + part


def part_of(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[None, :, None]


def test_a_linear_layer_is_given_the_whole_batch_and_each_part_gets_its_own() -> None:
    turns, doubling = Turns(), Doubling()

    def run(values: list[float]) -> list[list[float]]:
        x = part_of(values)
        return [turns.wait(layer, x).flatten().tolist() for layer in doubling.layers]

    found = turns.run([lambda: run([1.0, 2.0]), lambda: run([4.0, 3.0])], ROWS)
    assert doubling.seen == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert found == [[[2.0, 4.0], [3.0, 5.0]], [[8.0, 6.0], [9.0, 7.0]]]
    assert not turns.is_running


def test_a_part_that_fails_ends_all_and_the_next_batch_is_run() -> None:
    turns, doubling = Turns(), Doubling()
    ended: list[str] = []

    def waits() -> torch.Tensor:
        try:
            return turns.wait(doubling.layers[0], part_of([1.0, 2.0]))
        finally:
            ended.append("waited")

    def fails() -> None:
        raise RuntimeError("no memory is left")

    with pytest.raises(RuntimeError, match="no memory"):
        turns.run([waits, fails], ROWS)
    assert (ended, turns.is_running, doubling.seen) == (["waited"], False, [])
    ended.clear()
    other = part_of([4.0, 3.0])
    found = turns.run([waits, lambda: turns.wait(doubling.layers[0], other)], ROWS)
    assert [y.flatten().tolist() for y in found] == [[2.0, 4.0], [8.0, 6.0]]
    assert ended == ["waited"]


def test_parts_that_go_ways_of_their_own_are_refused() -> None:
    turns, doubling = Turns(), Doubling()
    x = part_of([1.0, 2.0])
    first, second = doubling.layers
    for other in (lambda: turns.wait(second, x), lambda: x):
        with pytest.raises(NotImplementedError, match="other ways for other lengths"):
            turns.run([lambda: turns.wait(first, x), other], ROWS)
        assert not turns.is_running
