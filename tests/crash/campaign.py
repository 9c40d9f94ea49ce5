"""The long way of the crash tests: `make crash`, or `python -m tests.crash.campaign`.

Prints a table of what was tried, and stops at the first thing that is wrong.
"""

import argparse
import itertools
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.crash.journal import Journal
from tests.crash.kills import end_processes
from tests.crash.recovery import Replay, Tally
from tests.crash.server_kills import TARGETS, Kills
from tests.crash.story import STORIES, Teller, ramble
from tests.support.memory import memory_folder
from tests.support.report import write_report


def replay(folder: Path, *, kills: int, power_cuts: int) -> dict[str, Tally]:
    """Replay the stories, and random ones until that many different disks were opened."""
    killed, cut = Replay(folder), Replay(folder)
    stories = itertools.chain(STORIES.values(), map(ramble, itertools.count()))
    for number, story in enumerate(stories):
        if killed.tally.states >= kills and cut.tally.states >= power_cuts:
            break
        recorded = folder / f"recorded{number}"
        journal = Journal(recorded)
        teller = Teller(recorded, journal)
        story(teller)
        teller.close()
        if killed.tally.states < kills:
            killed.kills(journal)
        if cut.tally.states < power_cuts:
            cut.power_cuts(journal, limit=12)
    return {"kills": killed.tally, "power cuts": cut.tally}


def kill_servers(folder: Path, base: str, rounds: int) -> Kills:
    """Kill a real server of a tiny `base` under load, again and again."""
    kills = Kills(folder, 0, base)
    kills.begin()
    for _ in range(rounds):
        kills.kill_once()
    kills.server.stop()
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10_000, help="disks after kills")
    parser.add_argument("--power-cuts", type=int, default=10_000, help="disks after power cuts")
    parser.add_argument("--server-kills", type=int, default=20, help="kills of real servers")
    parser.add_argument("--output", type=Path, help="file for the result, as JSON")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        tallies = replay(Path(name), kills=options.kills, power_cuts=options.power_cuts)
    with tempfile.TemporaryDirectory() as name:
        processes = end_processes(Path(name), first=0, step=1)
    servers = []
    for base in TARGETS:
        with tempfile.TemporaryDirectory() as name:
            rounds = options.server_kills // len(TARGETS)
            servers.append(kill_servers(Path(name), base, rounds))
    starts = [seconds for each in servers for seconds in each.start_seconds]
    result = {
        **{what: asdict(tally) for what, tally in tallies.items()},
        "processes ended": processes,
        "servers killed": len(starts),
        "calls answered before": sum(each.num_calls for each in servers),
        "longest start after a kill, s": round(max(starts, default=0), 2),
        "seconds": round(time.monotonic() - begun, 1),
    }
    _show(result)
    if options.output:
        write_report(options.output, result)


def _show(result: dict[str, object]) -> None:
    table = Table("tried", "how much", title="Crashes after which nothing was lost")
    for what, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{number} {name}" for name, number in value.items())
        table.add_row(what, str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
