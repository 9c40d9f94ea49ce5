"""Invents input for so many seconds, prints a table, and writes JSON if told where.

`make fuzz`, or `python -m tests.fuzz --help`. Ends with 1 if something was found.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import grpc

from tests.fuzz.forms import following, form_target
from tests.fuzz.hybrid import package_target, serving
from tests.fuzz.target import Result, fuzz
from tests.fuzz.targets import file_targets, wire_targets
from tests.fuzz.texts import text_targets
from tests.support.fake_server import FakeServer
from tests.support.report import write_report
from tests.support.table import markdown


def campaign(seconds: float, corpus: Path | None, first_seed: int) -> list[Result]:
    """Try everything, each for the same part of `seconds`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeServer(Path(folder), step_seconds=0.0) as server,
        grpc.insecure_channel(server.target) as channel,
        following() as forms,
        serving() as (harness, saved),
        text_targets() as of_texts,
    ):
        targets = [
            *file_targets(),
            package_target(harness, saved),
            *wire_targets(server, channel),
            form_target(forms),
            *of_texts,
        ]
        each = seconds / len(targets)
        results = [fuzz(target, each, corpus, first_seed) for target in targets]
        with server.client() as client:
            client.generate((1, 2, 3), max_tokens=2)  # it still serves
    return results


def table(results: list[Result]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [markdown([result.row() for result in results])]
    for result in results:
        lines += [f"{result.name}: {found['error']}" for found in result.findings]
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0, help="another one invents other input")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to try again, and to keep")
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    results = campaign(arguments.seconds, arguments.corpus, arguments.seed)
    print(table(results))
    if arguments.output:
        found = [r.row() | {"outcomes": r.outcomes, "found": r.findings} for r in results]
        write_report(arguments.output, found)
    return int(any(result.findings for result in results))


if __name__ == "__main__":
    sys.exit(main())
