"""Correctness on a GPU: loads that race with steps, and the tests with compiled kernels.

Adapters are loaded and evicted while steps run: every answer must equal that of an idle engine.
Then the tests of kernels and engine run on the device, with bfloat16, which Triton's interpreter
does not support.

    python -m benchmarks.gpu.check --workers 16 --output result.json
"""

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from benchmarks.gpu import device as on
from benchmarks.gpu.race import race
from benchmarks.gpu.record import Record

ROOT = Path(__file__).parents[2]
TESTS = ("tests/kernels/gpu",)


class Tests:
    """Counts tests as they finish, so that partial results are known after a timeout."""

    def __init__(self, record: Record) -> None:
        self.found: dict[str, Any] = {"run": 0, "skipped": 0, "failures": [], "running": []}
        record["tests"] = self.found
        self._record = record

    def run(self, paths: list[Path], workers: int) -> None:
        """Run the tests in `paths`, in this many worker processes, or in this one for 0."""
        # Warnings of other versions of dependencies are not the concern here.
        command = ["-q", "-W", "default", *map(str, paths)]
        command += [f"-n{workers}", "--dist=worksteal"] if workers else []
        code = pytest.main(command, plugins=[self])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest ended with {code!r}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record what cannot be collected."""
        if report.failed:
            self.found["failures"].append(report.nodeid)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record what starts: if a test hangs until the time limit, the file names it."""
        self.found["running"].append(nodeid)
        self._record.write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a test, its setup or its teardown."""
        if report.failed:
            self.found["failures"].append(report.nodeid)
        self.found["skipped"] += report.skipped
        self.found["run"] += report.when == "call" and not report.skipped
        if report.when == "teardown" and report.nodeid in self.found["running"]:
            self.found["running"].remove(report.nodeid)


def main(
    seconds: Annotated[
        float, typer.Option(help="Seconds of the race between loads and steps.")
    ] = 60,
    workers: Annotated[
        int, typer.Option(help="Worker processes for tests, with pytest-xdist.")
    ] = 0,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Run the race and the tests; exit with 1 if anything fails."""
    device = on.choose()
    record = Record(
        output,
        ["race", "tests"],
        command="python -m benchmarks.gpu.check",
        machine=on.describe(device),
    )
    raced: dict[str, int] = {}
    with record.part("race"):
        record["race"] = raced = race(device, seconds)
        print(f"race: {raced}", flush=True)
    tests = Tests(record)
    with record.part("tests"):
        tests.run([ROOT / folder for folder in TESTS], workers)
        print(f"tests: {tests.found}", flush=True)
    is_right = raced.get("loads") and not raced["different"] and not tests.found["failures"]
    if record.has_failed or not is_right:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
