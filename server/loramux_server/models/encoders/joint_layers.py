"""Decoder layers of an encoder-decoder that run the next tokens of several requests at once.

Decoding a token takes many small operations. So when requests reach a layer with one token each,
the layer is called once for all, with the tokens in one row as if they were one text. Only
attention to the cached tokens is computed per request. The first layer runs per request, since it
may compute positions for the others.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from loramux_server.models.encoders.joint_attention import Call, JointAttention
from loramux_server.models.packed_linear import PackedPart
from loramux_server.models.turns import Joint, LayerTurns


class JointLayer(Joint):
    """Takes the place of a decoder layer."""

    def __init__(
        self, own: nn.Module, attention: JointAttention, turns: LayerTurns, number: int, side: int
    ) -> None:
        super().__init__()
        self.own = own
        """The model's own layer."""
        self.number = number
        self.side = side
        self._attention = attention
        self._turns = turns

    def made(self, calls: Sequence[Any]) -> list[Any]:
        """Return the layer's output for each of `calls`, computed together."""
        return self._attention.made(self.own, calls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the layer's output for tokens of one request."""
        call = Call.of(args, kwargs)
        if self._turns.joins and call.goes_on(self._attention.num_layers):
            return self._turns.join(self, call)
        return self.own(*args, **kwargs)


def join_layers(
    decoder: nn.Module, attention: JointAttention, turns: LayerTurns, count: int, side: int
) -> None:
    """Let the layers of `decoder`, `count` in number, run several requests together.

    Args:
        decoder: The decoder.
        attention: Its attention.
        turns: Lets requests wait for each other.
        count: Number of its layers.
        side: Which of a request's tokens the layers see.
    """
    layers = next(
        part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count
    )
    for place, layer in list(enumerate(layers))[1:]:
        groups = [part.place.group for part in layer.modules() if isinstance(part, PackedPart)]
        layers[place] = JointLayer(layer, attention, turns, 2 * min(groups) - 1, side)


def part_layers(decoder: nn.Module) -> None:
    """Undo `join_layers`."""
    for part in list(decoder.modules()):
        if isinstance(part, nn.ModuleList):
            for place, layer in enumerate(part):
                if isinstance(layer, JointLayer):
                    part[place] = layer.own
