"""Layers at which the parts of a batch wait for each other."""

import torch
from torch import nn

from loramux_server.models.packed_linear import OutputLayer, PackedPart
from loramux_server.models.part_scheduler import PartScheduler

_LAST = 1 << 30
"""Order of the output layer."""


class SyncedLinear(PackedPart):
    """Takes the place of a linear layer at which parts of a batch meet."""

    def __init__(self, part: PackedPart, scheduler: PartScheduler, side: int = 0) -> None:
        super().__init__(part.packed, part.part)
        self.side = side
        self._scheduler = scheduler

    @property
    def number(self) -> int:
        """Twice the number of its group, to leave room for joint layers in between."""
        return 2 * self.place.group

    def compute_all(self, x: torch.Tensor) -> torch.Tensor:
        """Return its output for the rows of all parts."""
        return self.packed.part(x, self.part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, with the adapters' changes of the running step."""
        if self._scheduler.is_running:
            return self._scheduler.wait(self, x)
        return super().forward(x)


class SyncedOutput(nn.Module):
    """Takes the place of the output layer."""

    number = _LAST

    def __init__(self, output: OutputLayer, scheduler: PartScheduler, side: int) -> None:
        super().__init__()
        self.side = side
        self.output = output
        self._scheduler = scheduler

    @property
    def weight(self) -> torch.Tensor:
        """The weight on the meta device."""
        return self.output.weight

    def compute_all(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the rows of all parts."""
        logits: torch.Tensor = self.output(x)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of `x`."""
        return self._scheduler.wait(self, x) if self._scheduler.is_running else self.compute_all(x)
