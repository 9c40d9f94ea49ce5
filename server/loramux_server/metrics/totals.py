"""What a server did since it started and what it holds now, in plain numbers.

The metrics have the same by adapter, of the busiest alone; nothing can be added up there.
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
"""The state of an engine that is not there."""


@dataclass(slots=True)
class Totals:
    """Counts since the server started; times are sums in seconds. Lives on the event loop."""

    requests: int = 0
    """That ended, in whatever way."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    """From arrival."""
    gaps: int = 0
    """Between tokens of a completion."""
    gap_seconds: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    step_requests: int = 0
    """Requests in each step, added up."""
    step_adapters: int = 0
    """Distinct adapters in each step, added up."""
    engine: Stats = NOTHING
    """The state after the last step; its counts are of this engine alone."""

    def report(self, report: Report) -> None:
        """Take in what one step had to tell."""
        self.engine = report.stats
        if report.batch:
            self.steps += 1
            self.step_seconds += report.batch.seconds
            self.step_requests += report.batch.requests
            self.step_adapters += report.batch.adapters
