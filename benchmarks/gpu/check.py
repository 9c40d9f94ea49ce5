"""Whether everything that a GPU computes is right there: the tests, compiled, and loads in a race.

Runs the tests of kernels, engine and parity that have a device to run on, with bfloat16, which
Triton's interpreter does not know. Then adapters come and go while steps run: every answer must be
what it was when nothing else went on.

    python -m benchmarks.gpu.check --output result.json
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer

from benchmarks.gpu import device as on
from benchmarks.gpu.race import race

TESTS = ("tests/kernels/gpu",)


def main(
    seconds: Annotated[float, typer.Option(help="How long adapters race against steps.")] = 60,
    workers: Annotated[int, typer.Option(help="Of tests, with pytest-xdist.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Run tests and race; exit with 1 if anything is wrong."""
    device = on.choose()
    tests = _run_tests(workers)
    print(f"tests: {tests}", flush=True)
    raced = race(device, seconds)
    print(f"race: {raced}", flush=True)
    if output:
        record = {
            "command": "python -m benchmarks.gpu.check",
            "tests": tests,
            "race": raced,
            "machine": on.describe(device),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if tests["failures"] or raced["different"] or not raced["loads"]:
        raise SystemExit(1)


def _run_tests(workers: int) -> dict[str, object]:
    """Return counts of the tests, and the names of those that failed."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # What other versions of what we use warn of is not what is asked here.
        command = [sys.executable, "-m", "pytest", "-q", "-W", "default", f"--junit-xml={report}"]
        command += [f"-n{workers}", "--dist=worksteal"] if workers else []
        command += TESTS
        subprocess.run(command, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "run": len(cases) - skipped,
        "skipped": skipped,
        "failures": failures,
        "seconds": round(time.perf_counter() - begin, 1),
    }


if __name__ == "__main__":
    typer.run(main)
