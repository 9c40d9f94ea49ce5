"""All that is found out about too much to do, and what of it should not be."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos import percentile
from tests.overload.generator import Asking, Generator
from tests.overload.levels import Level, memory_of, offer_each
from tests.overload.readers import Beside
from tests.overload.storm import Storm
from tests.support.server import RunningServer
from tests.support.table import markdown

LEVELS = (1.0, 2.0, 5.0, 10.0)
MIN_OFFERED = 0.8
"""Of what was to be offered; below that nothing was proved."""
MIN_GOODPUT = 0.95
"""Of the most that any level had, at the last one."""
MAX_REFUSAL = 0.05
"""Seconds until a request is refused, for 99 of 100."""
MAX_GROWTH = 128
"""MiB that both processes may grow by."""
MAX_ATTEMPTS = 1.5
"""Calls that come to the server for one that was made, in a storm."""
MIN_RECOVERED = 0.95
MAX_BESIDE = 1.1
"""Times of what the 99th percentile between two pieces is without streams that are not read."""


@dataclass(frozen=True)
class Outcome:
    """What a campaign found."""

    memory: float
    """MiB of both processes before it."""
    levels: list[Level]
    storm: Storm | None = None
    beside: Beside | None = None

    @property
    def faults(self) -> list[str]:
        """What should not be."""
        peak, last = max(level.share for level in self.levels), self.levels[-1]
        refusal = percentile(last.refusals, 0.99)
        late = percentile(last.late, 0.99)
        growth = max(level.memory for level in self.levels) - self.memory
        num_hung = sum(level.num_hung for level in self.levels)
        planned = last.factor * last.capacity
        found = {
            f"only {last.offered:.0f} of {planned:.0f} requests a second were offered": (
                last.offered < MIN_OFFERED * planned
            ),
            f"goodput at {last.factor:g}x is {last.share / peak:.0%} of the peak": (
                last.share < MIN_GOODPUT * peak
            ),
            f"refusals take {refusal:.3f} s, where who sleeps is {late:.3f} s late": refusal
            > MAX_REFUSAL,
            f"{num_hung} requests hung": num_hung > 0,
            f"memory grew by {growth:.0f} MiB": growth > MAX_GROWTH,
            "nothing was refused": not last.refusals,
        }
        if storm := self.storm:
            tries = storm.attempts_per_call
            found |= {
                f"{tries:.2f} calls came to the server for each": tries > MAX_ATTEMPTS,
                "nothing was tried again": storm.num_attempts <= len(storm.during),
                f"{storm.recovered:.0%} is served after the storm": (
                    storm.recovered < MIN_RECOVERED
                ),
            }
        if beside := self.beside:
            found[f"readers wait {beside.ratio:.2f} times as long beside stalled ones"] = (
                beside.ratio > MAX_BESIDE
            )
        return [fault for fault, is_there in found.items() if is_there]

    def report(self) -> dict[str, object]:
        return {
            "MiB before": round(self.memory),
            "levels": [level.row() for level in self.levels],
            "storm": self.storm.row() if self.storm else None,
            "stalled readers": self.beside.row() if self.beside else None,
            "faults": self.faults,
        }


def offer_all(
    server: RunningServer, asking: Asking, *, count: int, seconds: float,
    levels: Sequence[float] = LEVELS, rounds: int = 1,
) -> Outcome:  # fmt: skip
    """Find out what a server can serve of which `count` run, and offer it some times that.

    For so many `seconds` each, in so many `rounds`.
    """
    with Generator(asking, 2) as generator:
        generator.busy(count, seconds / 4).result()  # everything is loaded and warm after that
        before = memory_of(server)
        found = offer_each(server, generator, levels, count=count, seconds=seconds, rounds=rounds)
    return Outcome(before, found)


def table(outcome: Outcome) -> str:
    rows = [level.row() for level in outcome.levels]
    for row in rows:
        failed = row["failed"]
        assert isinstance(failed, dict)
        named = (f"{count} {reason}" for reason, count in failed.items())
        row["failed"] = ", ".join(named) or "none"
    lines = [markdown(rows)]
    for part in (outcome.storm, outcome.beside):
        if part:
            lines.append(f"\n{markdown([part.row()])}")
    lines.append(f"\n{'; '.join(outcome.faults) or 'All is as it should be'}.")
    return "\n".join(lines)
