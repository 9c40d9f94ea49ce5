"""Makes mistakes in the sources and says which of them no test notices.

`make mutation`, or `python -m tests.mutation --help`. Prints a table and the mistakes that
survived, and ends with 1 if too many did.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutation.modules import GROUPS, files_in, who_tests
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.trial import MIN_PATIENCE, PATIENCE, SURVIVED, Copy, load_libraries, run_tests
from tests.support.report import write_report

BAR = 0.85
"""What part of the mistakes has to be noticed."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant."""

    group: str
    path: str
    line: int
    change: str
    outcome: str


def chosen(group: str, count: int | None, seed: int, only: str) -> list[tuple[str, Mutant]]:
    """Return `count` mutants of `group` in random order, or all of them."""
    found = [
        (path, mutant)
        for path in files_in(group)
        if only in path
        for mutant in mutants(Path(path).read_text(encoding="utf-8"))
    ]
    random.Random(seed).shuffle(found)
    return found[:count]


def campaign(
    groups: list[str], count: int | None, seconds: float, seed: int, only: str = ""
) -> list[Result]:
    """Try mutants of each group, for the same part of `seconds`."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Copy(Path(folder))
        load_libraries()
        for group in groups:
            begin = time.monotonic()
            outcome, usual = run_tests(GROUPS[group][1], 1000.0)
            if outcome != SURVIVED:
                raise SystemExit(f"the tests of {group} fail without any mistake")
            patience = max(MIN_PATIENCE, PATIENCE * usual)
            for path, mutant in chosen(group, count, seed, only):
                if time.monotonic() - begin > seconds / len(groups):
                    break
                with tree.having(path, mutant.source):
                    outcome = _outcome(who_tests(group, path), patience)
                results.append(Result(group, path, mutant.line, mutant.change, outcome))
                if outcome == SURVIVED:
                    print(f"{path}:{mutant.line}: {mutant.change}", flush=True)
            print(
                f"{group}: {len(results)} mutants so far, in {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    return results


def _outcome(stages: list[list[str]], patience: float) -> str:
    """Return what becomes of the mutant that is in the tree, by the first tests that notice it."""
    outcome = SURVIVED
    for tests in stages:
        if outcome == SURVIVED:
            outcome, _ = run_tests(tests, patience)
    return outcome


def table(results: list[Result]) -> str:
    """Return the figures of each file and each group as a table in Markdown."""
    lines = ["| group | file | mutants | noticed | part |", "| --- | --- | --- | --- | --- |"]
    for group in dict.fromkeys(result.group for result in results):
        mine = [result for result in results if result.group == group]
        for path in sorted({result.path for result in mine}):
            lines.append(_row(group, Path(path).name, [r for r in mine if r.path == path]))
        lines.append(_row(f"**{group}**", "all", mine))
    return "\n".join(lines)


def _row(group: str, name: str, results: list[Result]) -> str:
    noticed = sum(result.outcome != SURVIVED for result in results)
    return f"| {group} | {name} | {len(results)} | {noticed} | {noticed / len(results):.0%} |"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--group", action="append", choices=list(GROUPS), help="by default all")
    parser.add_argument("--only", default="", help="files whose paths hold this text")
    parser.add_argument("--count", type=int, help="mutants of each group; by default all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all groups together")
    parser.add_argument("--seed", type=int, default=0, help="another one chooses others")
    parser.add_argument("--output", type=Path, help="file for the results, as JSON")
    given = parser.parse_args()
    output = given.output.resolve() if given.output else None
    groups = given.group or list(GROUPS)
    results = campaign(groups, given.count, given.seconds, given.seed, given.only)
    print(table(results))
    if output:
        write_report(output, [asdict(result) for result in results])
    made = Counter(result.group for result in results)
    missed = Counter(result.group for result in results if result.outcome == SURVIVED)
    return int(any(missed[group] > (1 - BAR) * made[group] for group in made))


if __name__ == "__main__":
    sys.exit(main())
