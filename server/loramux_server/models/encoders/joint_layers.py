"""Layers of a decoder behind an encoder, which take the next tokens of several requests at once.

What a decoder makes of one token takes many small operations. So where requests come to a layer
with one token each, it is called once for all of them, which lie in a row as the tokens of one text
do, and only attention, which sees what each has seen before, is computed for one after another. The
first layer is called for each: it may tell the others where tokens are.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from loramux_server.models.encoders.joint_attention import Call, JointAttention
from loramux_server.models.packed_linear import PackedPart
from loramux_server.models.turns import Joint, LayerTurns


class JointLayer(Joint):
    """Stands where a layer of a decoder stood."""

    def __init__(
        self, own: nn.Module, attention: JointAttention, turns: LayerTurns, number: int, side: int
    ) -> None:
        super().__init__()
        self.own = own
        """The model's own."""
        self.number = number
        self.side = side
        self._attention = attention
        self._turns = turns

    def made(self, calls: Sequence[Any]) -> list[Any]:
        """Return what the layer makes of the tokens of all requests, for each."""
        return self._attention.made(self.own, calls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the layer makes of tokens of one request."""
        call = Call.of(args, kwargs)
        if self._turns.joins and call.goes_on(self._attention.num_layers):
            return self._turns.join(self, call)
        return self.own(*args, **kwargs)


def join_layers(
    decoder: nn.Module, attention: JointAttention, turns: LayerTurns, count: int, side: int
) -> None:
    """Let the layers of `decoder`, of which there are `count`, take requests together.

    Args:
        decoder: It.
        attention: What attends in it.
        turns: Lets requests wait for each other.
        count: Number of its layers.
        side: Which of the tokens of a request they are given.
    """
    layers = next(
        part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count
    )
    for place, layer in list(enumerate(layers))[1:]:
        groups = [part.place.group for part in layer.modules() if isinstance(part, PackedPart)]
        layers[place] = JointLayer(layer, attention, turns, 2 * min(groups) - 1, side)


def part_layers(decoder: nn.Module) -> None:
    """Undo that."""
    for part in list(decoder.modules()):
        if isinstance(part, nn.ModuleList):
            for place, layer in enumerate(part):
                if isinstance(layer, JointLayer):
                    part[place] = layer.own
