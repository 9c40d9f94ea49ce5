"""Runs a step to its end, or ahead of the host if the device alone can sample its tokens."""

from typing import Any, Protocol

import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.flight import Flight, Outcome, Ran
from loramux_server.engine.plan import Plan
from loramux_server.engine.residents import Clock
from loramux_server.engine.sampler import sample
from loramux_server.engine.structured_output import StructuredOutput


class Runner(Protocol):
    """What the engine needs from a model."""

    def run(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the rows that need them, float32, as [R, V]."""

    def read(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the same, and the results of `batch.read`, one each, on the host."""


class Starter(Protocol):
    """What starts a step without waiting for the previous one."""

    def start(self, batch: Batch, before: Any) -> Outcome:  # noqa: ANN401
        """Start a step; some of its input tokens come from `before`, the previous outcome."""


class Execution:
    """Runs batches and samples tokens."""

    def __init__(
        self,
        runner: Runner,
        starter: Starter | None,
        structured_output: StructuredOutput,
        vocab_size: int | None,
        clock: Clock,
    ) -> None:
        """Put the parts together.

        Args:
            runner: Runs the model.
            starter: Runs it asynchronously; None where there is nothing to be gained.
            structured_output: Knows the allowed tokens in structured output.
            vocab_size: Vocabulary size of the base; None if it does not matter.
            clock: Seconds, monotonic.
        """
        self._runner = runner
        self._starter = starter
        self._structured_output = structured_output
        self._vocab_size = vocab_size
        self._clock = clock
        self.flight: Flight | None = None
        """The step in flight while the next one is planned."""

    def can_run_ahead(self, plan: Plan) -> bool:
        """Return whether the device alone can sample the tokens of `plan`."""
        return self._starter is not None and all(chunk.is_plain for chunk in plan.chunks)

    def start(self, plan: Plan, batch: Batch, begin: float) -> Ran | None:
        """Start a step that samples on the device, and wait for the previous one, if in flight.

        Args:
            plan: The step; see `can_run_ahead`.
            batch: Its input.
            begin: When it began, on the engine's clock.

        Returns:
            The results of the previous step; None if none was in flight.
        """
        assert self._starter is not None
        before = self.flight
        outcome = self._starter.start(batch, before.outcome if before else None)
        self.flight = Flight(plan, batch, outcome, begin)
        return before.land() if before else None

    def land(self) -> Ran:
        """Wait for the step in flight."""
        assert self.flight is not None
        flight, self.flight = self.flight, None
        return flight.land()

    def run(self, plan: Plan, batch: Batch, begin: float) -> Ran:
        """Run a step to its end, and sample; the arguments are those of `start`."""
        self._structured_output.mask_drafts(batch.drafts)
        read: list[torch.Tensor] = []
        if batch.read:
            logits_RV, read = self._runner.read(batch)
        else:
            logits_RV = self._runner.run(batch)
            if logits_RV.is_cuda and not batch.requests:  # nothing else would wait for the step
                torch.cuda.current_stream(logits_RV.device).synchronize()
        ended = self._clock()
        self._structured_output.wait(batch.requests)
        waited = self._clock() - ended
        sampled = sample(logits_RV, batch.requests, self._vocab_size, batch.drafts)
        return Ran(plan, batch, sampled, read, begin + waited)
