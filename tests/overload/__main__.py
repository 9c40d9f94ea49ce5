"""Offers up to ten times of what can be served, prints tables, and writes JSON if told where.

`make overload`, or `python -m tests.overload --help`. Then a crowd of clients that try again comes
while the engine dies, and streams are read beside others that nobody reads. Ends with 1 if
something is not as it should be.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from tests.overload.campaign import LEVELS, Outcome, offer_all, table
from tests.overload.demo import MAX_RUNNING, demo_asks, demo_server
from tests.overload.generator import Asking, Generator
from tests.overload.readers import NUM_UNREAD, Beside, beside_stalled
from tests.overload.storm import Storm, storm
from tests.support.report import write_report
from tests.support.server import RunningServer

MAX_TOKENS = 200
N = 4
"""Completions of each request: to refuse one takes the frontend less than a millisecond of its
core, most of it gRPC's, which is to be little beside what a request takes."""
STORM_SECONDS = 30.0
"""At least: an engine takes about 15 to come back where so much else goes on."""
NUM_CLIENTS, NUM_PROCESSES = 4, 4
"""Clients of each process, and processes, of the crowd."""
NUM_STALLED, NUM_FAST = 16, 4
ROUNDS = 3
"""Of all rates, and of streams without and beside others: how fast the machine is changes."""


def overload(folder: Path, seconds: float, factors: list[float]) -> Outcome:
    """Offer too much, and let a crowd come, to one server."""
    with demo_server(folder) as server:
        asking = Asking(target=server.target, asks=demo_asks, max_tokens=MAX_TOKENS)
        outcome = offer_all(
            server, dataclasses.replace(asking, n=N), count=MAX_RUNNING // N,
            seconds=seconds / ROUNDS, levels=factors, rounds=ROUNDS,
        )  # fmt: skip
        return dataclasses.replace(outcome, storm=_storm(server, asking, seconds))


def _storm(server: RunningServer, asking: Asking, seconds: float) -> Storm:
    crowd = dataclasses.replace(asking, num_clients=NUM_CLIENTS, retries=True)
    with Generator(asking, 1) as steady:
        return storm(
            server, crowd, steady, factor=5.0, count=MAX_RUNNING,
            seconds=max(seconds, STORM_SECONDS), deadline=30.0, recovery=10.0,
            num_processes=NUM_PROCESSES,
        )  # fmt: skip


def stalled(folder: Path, seconds: float) -> Beside:
    """Read streams beside others that nobody reads."""
    more = (
        "--max-running", str(NUM_STALLED * NUM_UNREAD + NUM_FAST), "--kv-memory", "256M",
        "--max-waiting", str(NUM_STALLED * NUM_UNREAD), "--reader-timeout", str(10 * seconds + 60),
    )  # fmt: skip
    with demo_server(folder, *more) as server:
        asking = Asking(target=server.target, asks=demo_asks, max_tokens=MAX_TOKENS)
        with Generator(asking, 1) as generator:
            generator.busy(NUM_FAST, seconds / 4).result()
            return beside_stalled(
                server, generator, num_stalled=NUM_STALLED, num_fast=NUM_FAST, rounds=ROUNDS,
                seconds=seconds / ROUNDS, max_tokens=400,
            )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each part")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=LEVELS, help="times of what can be served"
    )
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = overload(Path(folder) / "overload", arguments.seconds, arguments.factors)
        beside = stalled(Path(folder) / "stalled", arguments.seconds)
    outcome = dataclasses.replace(outcome, beside=beside)
    print(table(outcome))
    if arguments.output:
        write_report(arguments.output, outcome.report())
    return int(bool(outcome.faults))


if __name__ == "__main__":
    sys.exit(main())
