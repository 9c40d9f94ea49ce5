"""A step in flight, whose tokens are still to come, and its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.plan import Plan
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import Sampled, chosen_from, logprobs_of
from loramux_server.wire.messages import Logprobs


class Outcome(Protocol):
    """The future result of a started step: the token of each row that needs one."""

    def wait(self) -> list[Sampled]:
        """Wait for the tokens and return them."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a step chose, on the device.

    Legend: R rows whose logits are needed, or more, V tokens of the vocabulary.
    """

    logits_RV: torch.Tensor
    """The model's own, float32."""
    token_R: torch.Tensor
    """int64."""
    is_finite_R: torch.Tensor
    """Whether the row's logits are finite."""
    logprobs_RL: torch.Tensor | None
    """Output of `kernels.logprobs`; None if nobody asks for it."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A step in flight."""

    plan: Plan
    batch: Batch
    outcome: Outcome
    begin: float
    """When it was started, on the engine's clock."""

    def land(self) -> "Ran":
        """Wait for its tokens."""
        return Ran(self.plan, self.batch, [[one] for one in self.outcome.wait()], [], self.begin)


@dataclass(frozen=True, slots=True)
class Ran:
    """A step that has run."""

    plan: Plan
    batch: Batch
    sampled: list[list[Sampled]]
    """Tokens of each of `batch.requests`: the accepted part of its draft, and one more."""
    read: list[torch.Tensor]
    """The results of `batch.read`, one each."""
    begin: float
    """When it began, on the engine's clock, shifted by the time in which nothing ran."""


class DeviceOutcome:
    """The outcome of a step on a device, where the next step reads it without the host."""

    def __init__(self, chosen: Chosen, requests: Sequence[Request]) -> None:
        """Begin to copy the tokens of `requests` to the host; further rows are padding."""
        self.token_R = chosen.token_R
        """The token of each row, int64."""
        self._num_logprobs = [request.sampling.num_logprobs for request in requests]
        num_rows = len(requests)
        both_2R = torch.stack([chosen.token_R, chosen.is_finite_R.long()])[:, :num_rows]
        self._host_2R = _begin_copy(both_2R)
        self._host_RL: torch.Tensor | None = None
        if chosen.logprobs_RL is not None:
            self._host_RL = _begin_copy(chosen.logprobs_RL[:num_rows])
        self._event: torch.cuda.Event | None = None
        if both_2R.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> list[Sampled]:
        """Wait for the tokens and return them."""
        if self._event is not None:
            self._event.synchronize()
        tokens, finite = self._host_2R.tolist()
        found: list[Logprobs | None] = [None] * len(tokens)
        if self._host_RL is not None:
            rows = zip(self._host_RL.tolist(), self._num_logprobs, strict=True)
            found = [None if count is None else logprobs_of(row, count) for row, count in rows]
        return chosen_from(tokens, finite, found)


def _begin_copy(values: torch.Tensor) -> torch.Tensor:
    is_pinned = values.device.type == "cuda"
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=is_pinned)
    return host.copy_(values, non_blocking=True)
