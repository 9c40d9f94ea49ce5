"""Parts of a batch that go through a layer in turns, so that linear layers still see all of it.

What is recurrent cannot take requests one behind the other in a row of tokens, but its projections
can, and have to: only of the whole batch it is known which adapter each token has. So the layer
runs once for each part, each in a greenlet. Where they come to a linear layer they wait for each
other, that layer computes the batch, and each goes on with what is its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from loramux_server.models.packed_linear import PackedPart
from loramux_server.models.parts import Rows


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a part waits for."""

    layer: PackedPart
    x: torch.Tensor


class Turns:
    """Runs the parts of one batch after another; one for a model."""

    def __init__(self) -> None:
        self.is_running = False
        """Whether there are parts that wait for each other."""
        self._asked: list[torch.Tensor] = []
        self._whole = torch.empty(0)

    def run(self, calls: Sequence[Callable[[], Any]], rows: Sequence[Rows]) -> list[Any]:
        """Return what each of `calls` gives, which runs the layer for the tokens `rows` names.

        Raises:
            NotImplementedError: They do not come to the same linear layers.
        """
        if len(calls) == 1:
            return [calls[0]()]
        parts = [greenlet(call) for call in calls]
        self.is_running = True
        try:
            said = [part.switch() for part in parts]
            while not all(part.dead for part in parts):
                layers = {id(one.layer) if isinstance(one, _Asked) else 0 for one in said}
                if len(layers) > 1:
                    raise NotImplementedError("a layer that goes other ways for other lengths")
                ys = self._compute(said[0].layer, [one.x for one in said], rows)
                said = [part.switch(y) for part, y in zip(parts, ys, strict=True)]
        finally:
            self.is_running = False
            self._asked, self._whole = [], torch.empty(0)
        return said

    def wait(self, layer: PackedPart, x: torch.Tensor) -> torch.Tensor:
        """Return what `layer` makes of `x`, which a part has, when all parts have come to it."""
        found: torch.Tensor = getcurrent().parent.switch(_Asked(layer, x))
        return found

    def _compute(
        self, layer: PackedPart, xs: list[torch.Tensor], rows: Sequence[Rows]
    ) -> list[torch.Tensor]:
        # Layers with the same input know each other by it.
        if not (self._asked and all(map(_is, xs, self._asked))):
            pieces = [x.reshape(-1, x.shape[-1]) for x in xs]
            whole = pieces[0].new_empty(1, sum(map(len, pieces)), pieces[0].shape[-1])
            for piece, of_it in zip(pieces, rows, strict=True):
                whole[0, of_it] = piece
            self._asked, self._whole = xs, whole
        y = layer.packed.part(self._whole, layer.part)[0]
        return [
            y[of_it].view(*x.shape[:-1], y.shape[-1]) for x, of_it in zip(xs, rows, strict=True)
        ]


class WaitingPart(PackedPart):
    """Stands where a linear layer of a recurrent one stood."""

    def __init__(self, part: PackedPart, turns: Turns) -> None:
        super().__init__(part.packed, part.part)
        self._turns = turns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the adapters' changes of the running step."""
        if self._turns.is_running:
            return self._turns.wait(self, x)
        return super().forward(x)


def _is(one: object, other: object) -> bool:
    return one is other
