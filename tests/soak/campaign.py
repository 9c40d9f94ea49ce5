"""Warm up, look, work for long, and look whether all is as it was."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.soak.bounds import MAX_SLOPE, MEMORY, SPARE, grown, left, slopes
from tests.soak.loop import Loop
from tests.soak.mix import Mix
from tests.soak.samples import Sample, Sampler, take
from tests.soak.worker import Setting
from tests.support.polling import eventually
from tests.support.server import RunningServer

WARM_UP = 0.2
"""Part of the time after which pools, caches and tables have the size that they keep."""
QUIET_SECONDS = 60.0
"""A server may take so long to let go what nobody uses any more."""
MAX_KEPT = 50
"""About so many samples are in a report."""


@dataclass(frozen=True)
class Outcome:
    """What a campaign found."""

    seconds: float
    """Of the work, warm-up not counted."""
    done: Counter[str]
    before: Sample
    """At rest, after the warm-up."""
    samples: list[Sample]
    """At work."""
    after: Sample
    """At rest."""
    surprises: list[str]
    num_surprises: int

    @property
    def findings(self) -> list[str]:
        """Everything that is not as it has to be."""
        return [*self.surprises, *grown(self.samples), *left(self.before, self.after)]

    @property
    def num_preemptions(self) -> int:
        """How often a request had to start over for want of KV blocks."""
        return self.after.preemptions - self.before.preemptions

    @property
    def _stride(self) -> int:
        return max(1, len(self.samples) // MAX_KEPT)

    def rows(self) -> list[dict[str, object]]:
        """Return the figures of each measure."""
        found = slopes(self.samples)
        rows: list[dict[str, object]] = []
        for name in (*MEMORY, *SPARE):
            values = [getattr(sample, name) for sample in self.samples]
            row: dict[str, object] = {
                "measure": f"{name}, MiB" if name in MEMORY else name,
                "before": round(getattr(self.before, name), 1),
                "most at work": round(max(values), 1),
                "after": round(getattr(self.after, name), 1),
                "slope for 1,000": "",
                "up to": "",
                "allowed": f"slope {MAX_SLOPE}" if name in MEMORY else f"before + {SPARE[name]}",
            }
            if name in MEMORY:
                row["slope for 1,000"] = round(found[name].value, 3)
                row["up to"] = round(found[name].upper, 3)
            rows.append(row)
        return rows

    def report(self) -> dict[str, object]:
        return {
            "seconds": round(self.seconds, 1),
            "done": dict(sorted(self.done.items())),
            "surprises": self.num_surprises,
            "preemptions": self.num_preemptions,
            "measures": self.rows(),
            "findings": self.findings,
            "samples": [sample.as_dict() for sample in self.samples[:: self._stride]],
        }


def campaign(
    server: RunningServer, setting: Setting, *, seconds: float, num_workers: int = 8,
    interval: float = 1.0,
) -> Outcome:  # fmt: skip
    """Use a running `server` in all ways for so long, a look every `interval` seconds."""
    store = server.log.parent / "store"
    with Loop() as loop:
        with Mix(server, setting, loop, num_workers=num_workers) as warming:
            assert warming.toured(max(120.0, seconds)), "\n".join(warming.surprises)
            time.sleep(WARM_UP * seconds)
        before = rested(server, store)
        mix = Mix(server, setting, loop, num_workers=num_workers)
        begin = time.monotonic()
        with mix, Sampler(lambda: take(server, store, mix.num_done), interval) as sampler:
            time.sleep((1 - WARM_UP) * seconds)
            assert mix.toured(max(120.0, seconds)), "\n".join(mix.surprises)
            worked = time.monotonic() - begin
    eventually(lambda: not left(before, take(server, store, 0)), QUIET_SECONDS)
    return Outcome(
        worked, mix.done, before, sampler.samples, take(server, store, mix.num_done),
        [*warming.surprises, *mix.surprises], warming.num_surprises + mix.num_surprises,
    )  # fmt: skip


def rested(server: RunningServer, store: Path) -> Sample:
    """Return what `server` holds once that is the same for a second."""
    last = take(server, store, 0)
    for _ in range(int(QUIET_SECONDS)):
        time.sleep(1)
        now = take(server, store, 0)
        if not (left(last, now) or left(now, last)) and not now.requests:
            return now
        last = now
    raise AssertionError(f"the server does not come to rest: {last}")
