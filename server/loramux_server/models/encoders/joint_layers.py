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
from loramux_server.models.part_scheduler import JointModule, PartScheduler


class JointLayer(JointModule):
    """Takes the place of a decoder layer."""

    def __init__(
        self,
        original: nn.Module,
        attention: JointAttention,
        scheduler: PartScheduler,
        number: int,
        side: int,
    ) -> None:
        super().__init__()
        self.original = original
        """The model's own layer."""
        self.number = number
        self.side = side
        self._attention = attention
        self._scheduler = scheduler

    def run(self, calls: Sequence[Any]) -> list[Any]:
        """Return the layer's output for each of `calls`, computed together."""
        return self._attention.run(self.original, calls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the layer's output for tokens of one request."""
        call = Call.of(args, kwargs)
        if self._scheduler.joins and call.is_decode_step(self._attention.num_layers):
            return self._scheduler.join(self, call)
        return self.original(*args, **kwargs)


def join_layers(
    decoder: nn.Module, attention: JointAttention, scheduler: PartScheduler, count: int, side: int
) -> None:
    """Let the layers of `decoder`, `count` in number, run several requests together.

    Args:
        decoder: The decoder.
        attention: Its attention.
        scheduler: Lets requests wait for each other.
        count: Number of its layers.
        side: Which of a request's tokens the layers see.
    """
    layers = next(
        part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count
    )
    for place, layer in list(enumerate(layers))[1:]:
        groups = [part.place.group for part in layer.modules() if isinstance(part, PackedPart)]
        layers[place] = JointLayer(layer, attention, scheduler, 2 * min(groups) - 1, side)


def part_layers(decoder: nn.Module) -> None:
    """Undo `join_layers`."""
    for part in list(decoder.modules()):
        if isinstance(part, nn.ModuleList):
            for place, layer in enumerate(part):
                if isinstance(layer, JointLayer):
                    part[place] = layer.original
