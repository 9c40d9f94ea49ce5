"""A step that was started, whose tokens are still to come."""

from dataclasses import dataclass
from typing import Protocol

import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.plan import Plan
from loramux_server.engine.sampler import Sampled, chosen_from


class Outcome(Protocol):
    """What a started step will give: the token of each row that needs one."""

    def wait(self) -> list[Sampled]:
        """Return the tokens, when they are known."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that runs."""

    plan: Plan
    batch: Batch
    outcome: Outcome
    begin: float
    """When it was started, on the engine's clock."""


class DeviceOutcome:
    """The outcome of a step on a device, which the next step finds there without the host.

    Legend: R rows whose logits are needed, or more.
    """

    def __init__(self, token_R: torch.Tensor, is_finite_R: torch.Tensor, num_rows: int) -> None:
        """Begin to copy the result to the host; `num_rows` rows of it are somebody's."""
        self.token_R = token_R
        """The token of each row, int64."""
        both_2R = torch.stack([token_R, is_finite_R.long()])[:, :num_rows]
        is_pinned = token_R.device.type == "cuda"
        self._host_2R = torch.empty(both_2R.shape, dtype=both_2R.dtype, pin_memory=is_pinned)
        self._host_2R.copy_(both_2R, non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if is_pinned:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> list[Sampled]:
        """Return the tokens, when they are known."""
        if self._event is not None:
            self._event.synchronize()
        tokens, finite = self._host_2R.tolist()
        return chosen_from(tokens, finite)
