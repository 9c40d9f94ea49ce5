"""Totals since the server started, and its current state, as plain numbers.

The Prometheus metrics are labelled by adapter, and their series come and go with the busiest
adapters, so they cannot be summed.
"""

from dataclasses import dataclass

from loramux_server.wire.messages import CacheStats, Report, Stats

NOTHING = Stats(
    running=0,
    waiting=0,
    used_blocks=0,
    preemptions=0,
    prompt_tokens=0,
    shared_tokens=0,
    device=CacheStats(),
    host=CacheStats(),
)
"""The state while there is no engine."""


@dataclass(slots=True)
class Totals:
    """Counts since the server started, and sums of seconds. Changed on the event loop only."""

    requests: int = 0
    """Requests that ended, with any outcome."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    """Time from arrival to the first token."""
    gaps: int = 0
    """Gaps between consecutive tokens of a completion."""
    gap_seconds: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    step_requests: int = 0
    """Sum of the requests in each step."""
    step_adapters: int = 0
    """Sum of the distinct adapters in each step."""
    engine: Stats = NOTHING
    """The state after the last step; its counts begin with the current engine."""

    def report(self, report: Report) -> None:
        """Update the totals from the report of one step."""
        self.engine = report.stats
        if report.batch:
            self.steps += 1
            self.step_seconds += report.batch.seconds
            self.step_requests += report.batch.requests
            self.step_adapters += report.batch.adapters
