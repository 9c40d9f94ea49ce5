"""Faults under load: engines killed, crashed and stopped, servers drained; and who noticed what.

`make chaos`, or `python -m tests.chaos --help`. Prints a table and writes JSON if told where. A
fault counts only if streams were under way.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loramux.errors import UnavailableError
from tests.support.harmed import ENGINES, known, started
from tests.support.labelled import Labelled
from tests.support.load import Answer, Ask, Load, Stream
from tests.support.polling import eventually
from tests.support.report import write_report
from tests.support.server import RunningServer
from tests.support.table import markdown

HELD = (
    "requests_running", "requests_waiting", "requests_paused", "kv_blocks_used",
    "recurrent_states_used", "adapter_leases",
)  # fmt: skip
NUM_THREADS = 8
MIN_STREAMS = 24
"""So many have to end well between two faults."""
CYCLE = ("killed", "crashed", "stopped", "drained")
"""A server gives up after five deaths of its engine within a minute; a drain begins a new count."""


@dataclass
class Faults:
    """What came of all faults of a kind."""

    count: int = 0
    seconds_to_status: list[float] = field(default_factory=list)
    """Of the streams that a fault ended: from the fault to their status."""
    seconds_to_service: list[float] = field(default_factory=list)
    """From a fault to the first stream that began after it and ended well."""
    lost: int = 0
    """Streams that ended without a result though a drain had to let them finish."""

    def row(self) -> dict[str, object]:
        return {
            "faults": self.count,
            "streams": len(self.seconds_to_status),
            "p50 status s": round(percentile(self.seconds_to_status, 0.5), 3),
            "p99 status s": round(percentile(self.seconds_to_status, 0.99), 3),
            "max status s": round(max(self.seconds_to_status, default=0.0), 3),
            "p50 back s": round(percentile(self.seconds_to_service, 0.5), 3),
            "max back s": round(max(self.seconds_to_service, default=0.0), 3),
            "lost": self.lost,
        }


@dataclass
class Outcome:
    """What a campaign found."""

    faults: dict[str, Faults]
    streams: list[Stream]
    left: dict[str, float]
    """What the server holds in the end for requests that there are none of."""

    @property
    def num_hung(self) -> int:
        return sum(stream.hung for stream in self.streams)

    @property
    def num_wrong(self) -> int:
        return sum(not stream.is_right for stream in self.streams)

    @property
    def surprises(self) -> list[str]:
        """Errors that no fault explains."""
        errors = [stream.error for stream in self.streams if stream.error]
        return [repr(e) for e in errors if not isinstance(e, UnavailableError)]

    def report(self) -> dict[str, object]:
        return {
            "streams": len(self.streams),
            "finished": sum(not stream.error for stream in self.streams),
            "hung": self.num_hung,
            "wrong tokens": self.num_wrong,
            "other errors": self.surprises,
            "left": self.left,
            "faults": {kind: faults.row() for kind, faults in self.faults.items()},
        }


def percentile(values: list[float], part: float) -> float:
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def commit(kind: str, server: RunningServer) -> None:
    """Do harm of some kind to `server`."""
    numbers = {"killed": signal.SIGKILL, "crashed": signal.SIGSEGV, "stopped": signal.SIGSTOP}
    if kind == "drained":
        assert server.stop() == 0
        server.start()
    else:
        os.kill(server.engine_pid, numbers[kind])


def campaign(
    server: RunningServer, answer: Answer, asks: Callable[[random.Random], Ask], *,
    cycles: int, seconds: float, max_tokens: tuple[int, int] = (5, 120),
    min_streams: int = MIN_STREAMS, kind_of_load: type[Load] = Load,
) -> Outcome:  # fmt: skip
    """Do harm to a running `server` again and again, for so many cycles or seconds."""
    faults = {kind: Faults() for kind in dict.fromkeys(CYCLE)}
    choice = random.Random(0)
    end = time.monotonic() + seconds
    server.stay_at_address()
    with kind_of_load(
        server.client, answer, asks=asks, num_threads=NUM_THREADS, max_tokens=max_tokens
    ) as load:
        for kind in CYCLE * cycles:
            if time.monotonic() > end:
                break
            await_streams(server, load, min_streams)
            time.sleep(choice.uniform(0.0, 0.1))
            begin = time.monotonic()
            commit(kind, server)
            await_streams(server, load, 1, begin)
            take_in(faults[kind], load, begin, is_drain=kind == "drained")
    eventually(lambda: not held(server))
    return Outcome(faults, load.streams, held(server))


def await_streams(
    server: RunningServer, load: Load, count: int, since: float | None = None
) -> None:
    """Wait until `count` more streams ended well, which began after `since`."""
    since = time.monotonic() if since is None else since
    deadline = time.monotonic() + 120
    while sum(not stream.error for stream in ended_after(load, since)) < count:
        assert time.monotonic() < deadline, f"nothing is served:\n{server.log.read_text()}"
        time.sleep(0.01)


def ended_after(load: Load, since: float) -> Iterator[Stream]:
    for stream in reversed(load.streams):
        if stream.end < since - 60:
            break
        if stream.begin > since:
            yield stream


def take_in(faults: Faults, load: Load, begin: float, *, is_drain: bool) -> None:
    """Add what a fault at `begin` did; all that it ended has ended, since others began after it."""
    touched = [s for s in load.streams if s.begin < begin < s.end and s.error]
    faults.count += 1
    faults.seconds_to_status += [stream.end - begin for stream in touched]
    faults.lost += sum(is_drain and stream.num_tokens > 0 for stream in touched)
    ends = [stream.end for stream in ended_after(load, begin) if not stream.error]
    faults.seconds_to_service.append(min(ends) - begin)


def held(server: RunningServer) -> dict[str, float]:
    """Return what a server holds for requests, though it may have none."""
    metrics = server.metrics()
    found = {name: metrics[f"loramux_{name}"] for name in HELD}
    return {name: count for name, count in found.items() if count}


def table(outcome: Outcome) -> str:
    lines = [markdown([{"fault": kind} | f.row() for kind, f in outcome.faults.items()])]
    durations = [s.end - s.begin for s in outcome.streams if not s.error] or [0.0]
    lines.append(
        f"\n{len(outcome.streams)} streams, {len(durations)} of them finished (median "
        f"{statistics.median(durations):.2f} s), {outcome.num_hung} hung, "
        f"{outcome.num_wrong} with wrong tokens, {len(outcome.surprises)} with other errors; "
        f"left in the end: {outcome.left or 'nothing'}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=[*ENGINES], default="real")
    parser.add_argument("--cycles", type=int, default=1000, help="four faults each")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        started(arguments.engine, Path(folder)) as server,
    ):
        is_encoder = arguments.engine == "encoder"
        max_tokens = (5, 60) if is_encoder else (5, 120)
        answer, asks = known(arguments.engine, server, max_tokens[1])
        outcome = campaign(
            server, answer, asks, cycles=arguments.cycles, seconds=arguments.seconds,
            max_tokens=max_tokens, kind_of_load=Labelled if is_encoder else Load,
        )  # fmt: skip
    print(table(outcome))
    if arguments.output:
        write_report(arguments.output, outcome.report())
    bad = outcome.num_hung + outcome.num_wrong + len(outcome.surprises) + len(outcome.left)
    return int(bad + sum(faults.lost for faults in outcome.faults.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())
