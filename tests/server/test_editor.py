"""Edits of modules: for the rows of their adapter alone, and gone after the step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.edits import Edits, LayerEdit
from loramux_server.lora.segments import Residence, Segments
from loramux_server.lora.weight_format import WeightFormat
from loramux_server.models.editor import Editor


@dataclass(frozen=True)
class Plus:
    """Adds a vector to what the module makes, and checks what it was given."""

    bias: torch.Tensor

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert torch.equal(module.forward(x), y)
        return y + self.bias


def residence(edits: Edits | None) -> Residence:
    none = np.zeros((1, 1), np.int32)
    return Residence(0, 8, WeightFormat.FLOAT32, none, none.astype(np.float32), edits)


def step(*edits: Edits | None) -> StepInput:
    """Return a step of two tokens for each of `edits`, and one of the base before them."""
    size = 1 + 2 * len(edits)
    starts = list(range(1, size, 2))
    segments = Segments.build(starts, [start + 2 for start in starts], list(map(residence, edits)))
    empty = np.zeros(1, np.int32)
    return StepInput(
        torch.arange(size), torch.arange(size), torch.tensor([0, 2, 4]),
        AttentionBatch(empty, empty, empty[None], 4, torch.arange(size)), segments,
    )  # fmt: skip


def test_rows_of_an_adapter_are_edited_and_no_others() -> None:
    torch.manual_seed(0)
    embedding, output = nn.Embedding(5, 3), nn.Linear(3, 2)
    editor = Editor({"embed": embedding, "head": output}, output, {"embed": 1, "head": 1})
    one, two = torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20])
    given = step(Edits(modules={"embed": Plus(one)}), Edits(modules={"head": Plus(two)}))
    tokens, hidden = torch.arange(5)[None], torch.randn(1, 3, 3)
    before = embedding(tokens), output(hidden)
    with editor.editing(given):
        embedded, logits = embedding(tokens), output(hidden)
    expected = before[0].clone()
    expected[0, 1:3] += one
    assert torch.equal(embedded, expected)
    # Of the rows whose logits are needed the last one belongs to the second adapter.
    assert torch.equal(logits[0, :2], before[1][0, :2])
    torch.testing.assert_close(logits[0, 2], before[1][0, 2] + two)
    assert torch.equal(embedding(tokens), before[0])
    assert torch.equal(output(hidden), before[1])


def test_a_step_without_edits_knows_nothing_of_them() -> None:
    segments = step(None, Edits()).segments
    assert segments is not None
    assert segments.edits is None


def test_edits_know_their_size_and_move_as_a_whole() -> None:
    edits = Edits(
        layers={0: {1: LayerEdit(output_N=torch.ones(4)), 2: LayerEdit(shift_N=torch.ones(2))}},
        modules={"norm": Plus(torch.ones(3))},
    )
    assert edits.num_bytes == 4 * (4 + 2 + 3)
    moved = edits.to(torch.device("meta"))
    assert moved.num_bytes == edits.num_bytes
    layer, plus = moved.layers[0][1], moved.modules["norm"]
    assert layer.output_N is not None and layer.output_N.is_meta and layer.input_K is None
    assert isinstance(plus, Plus) and plus.bias.is_meta
