"""Edits of modules: for the rows of their adapter alone, and gone after the step."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.saved_linear import make_saved_linear
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.affine import Affine
from loramux_server.lora.edits import Edits, LayerEdit
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.packed_edits import split_edits
from loramux_server.lora.segments import Residence, Segments
from loramux_server.lora.virtual import Virtual, VirtualRun
from loramux_server.models.editor import Editor
from loramux_server.wire.weight_format import WeightFormat


@dataclass(frozen=True)
class Plus:
    """Adds a vector to what the module makes, and checks what it was given."""

    bias: torch.Tensor

    def __call__(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(module.forward(x), y)
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
    ).with_rows()  # fmt: skip


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


def test_virtual_tokens_take_the_place_of_embeddings() -> None:
    torch.manual_seed(0)
    embedding, output = nn.Embedding(5, 3), nn.Linear(3, 2)
    editor = Editor({}, output, {}, embedding)
    virtual = Virtual(torch.arange(12.0).reshape(4, 3))
    runs = VirtualRun(virtual, 2, torch.tensor([0, 1])), VirtualRun(virtual, 0, torch.tensor([4]))
    tokens = torch.arange(5)[None]
    before = embedding(tokens)
    with editor.editing(replace(step(None, None), embedded=runs)):
        embedded = embedding(tokens)
    assert torch.equal(embedded[0, [0, 1, 4]], virtual.embedding_VK[[2, 3, 0]])  # type: ignore[index]
    assert torch.equal(embedded[0, 2:4], before[0, 2:4])
    assert torch.equal(embedding(tokens), before)


def test_a_step_without_edits_knows_nothing_of_them() -> None:
    segments = step(None, Edits()).segments
    assert segments is not None
    assert segments.edits is None


def test_edits_know_their_size_and_move_as_a_whole() -> None:
    own = make_saved_linear(torch.ones(2, 3), torch.bfloat16)
    weight = LayerEdit(own, affine=Affine(shift_N=torch.ones(2)))
    edits = Edits(
        affine={1: {0: Affine(torch.ones(5))}},
        layers={0: {1: LayerEdit(input_K=torch.ones(4)), 2: weight}},
        modules={"norm": Plus(torch.ones(3))},
    )
    assert edits.num_bytes == 4 * (5 + 4 + 2 + 3) + 2 * 6
    moved = edits.to(torch.device("meta"))
    assert not moved.affine  # the slab has it
    assert moved.num_bytes == edits.num_bytes - 4 * 5
    layer, plus = moved.layers[0][2], moved.modules["norm"]
    assert layer.weight is not None and layer.input_K is None
    assert layer.weight(torch.ones(1, 3, device="meta")).is_meta
    assert layer.affine.shift_N is not None and layer.affine.shift_N.is_meta
    assert isinstance(plus, Plus) and plus.bias.is_meta


def test_factors_and_shifts_alone_take_no_layer_of_the_model() -> None:
    edits = Edits(affine={0: {0: Affine(torch.ones(2))}})
    assert edits and edits.changes_layers and not edits.has_edits_outside_slab
    segments = step(None, edits).segments
    assert segments is not None
    assert segments.edits is None


def test_what_multiplies_an_input_multiplies_what_makes_it() -> None:
    up, down, other, own = (LayerPlace(group, group % 2) for group in range(4))
    three, four = torch.full((2,), 3.0), torch.full((2,), 4.0)
    affine, rest = split_edits(
        {
            up: LayerEdit(affine=Affine(torch.ones(2), torch.ones(2))),
            down: LayerEdit(input_K=three, affine=Affine(four)),
            other: LayerEdit(input_K=four),
            own: LayerEdit(make_saved_linear(torch.ones(2, 2), torch.float32), None, Affine(four)),
        },
        {down: up},
    )
    assert affine.keys() == {up, down}
    assert affine[up].of(torch.ones(2)).tolist() == [6.0, 6.0]
    assert affine[down].of(torch.ones(2)).tolist() == [4.0, 4.0]
    assert rest.keys() == {other, own}
    assert rest[other].input_K is four
    assert rest[own].affine.factor_N is four


def test_a_weight_of_its_own_is_not_multiplied_before_its_time() -> None:
    """The slab is applied to the base's layer, of whose output nothing is left."""
    up, down = LayerPlace(0, 1), LayerPlace(1, 0)
    weight = make_saved_linear(torch.ones(2, 2), torch.float32)
    layers = {up: LayerEdit(weight), down: LayerEdit(input_K=torch.ones(2))}
    affine, rest = split_edits(layers, {down: up})
    assert not affine
    assert rest == layers
