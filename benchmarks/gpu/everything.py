"""All commands of this folder, in order of importance, within a time limit.

Each runs in its own process, which is terminated when its time or the total time is over; its
results so far are in its file. A failure does not stop the others. `everything.json` says which
ran, for how long and how they ended.

`tune` changes the plans of this checkout, which later commands read; `plans.json` is a copy. If one
call is not enough, or may not take so long, split the work with `--only` or `--skip`; on a fresh
checkout the second call needs the plans of the first in `server/loramux_server/kernels/gpu/`.

    python -m benchmarks.gpu.everything --seconds 560 --output-folder results --peer ../vllm
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine
from benchmarks.gpu.record import Record, say

_ROOT = Path(__file__).parents[2]
_PLANS = _ROOT / "server/loramux_server/kernels/gpu/plans.json"
_DRAFTS = ("--batch=1", "--batch=8", "--batch=32", "--repeats=1", "--dtype=bfloat16")
_LEAST_SECONDS = 10.0
"""With less time left, a command is not started."""


@dataclass(frozen=True, slots=True)
class Part:
    """A command that takes `--output`."""

    name: str
    command: tuple[str, ...]
    """Arguments of Python."""
    most_seconds: float
    """Its time limit, to leave time for later commands."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a part ended."""

    name: str
    seconds: float
    result: str

    @property
    def is_good(self) -> bool:
        """Whether it was completed."""
        return self.result == "done"


class UnfinishedError(Exception):
    """A part was not completed."""


def parts(peer: Path | None, peer_name: str, shape: str) -> list[Part]:
    """Return all parts in order of importance."""
    cores = str(os.cpu_count() or 1)
    workers = ("--workers", cores) if importlib.util.find_spec("xdist") else ()
    of = ("--shape", shape)
    # Its base is generated on the host and loaded twice.
    drafted = "llama-3.2-1b" if shape == "llama-3.1-8b" else shape
    found = [
        _part("tune", 100, "gpu.tune", "--processes", cores, *of),
        _part("end_to_end", 210, "gpu.end_to_end", "--only-own", *of),
        _part("peer_kernels", 60, "gpu.peer_kernels", str(peer), "--peer", peer_name, *of),
        _part("check", 150, "gpu.check", "--seconds", "30", *workers),
        _part("kernels", 60, "gpu.kernels", *of),
        _part("speculation", 90, "speculation", *_DRAFTS, "--shape", drafted),
        _part("peers", 240, "gpu.end_to_end", "--only", "peft", "--only", "batching", *of),
    ]
    return [part for part in found if peer or part.name != "peer_kernels"]


def _part(name: str, most_seconds: float, module: str, *arguments: str) -> Part:
    return Part(name, ("-m", f"benchmarks.{module}", *arguments), most_seconds)


NAMES = [part.name for part in parts(Path(), "", "")]


def main(
    output_folder: Annotated[Path, typer.Option(help="Folder for the results, as JSON.")],
    seconds: Annotated[float, typer.Option(help="Total time in seconds.")] = 560,
    peer: Annotated[Path | None, typer.Option(help="Checkout for peer_kernels.")] = None,
    peer_name: Annotated[str, typer.Option(help="Name of the peer.")] = "vllm",
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(NAMES)}.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="The others.")] = None,
    shape: Annotated[str, typer.Option(help="Shape of the base model.")] = "llama-3.1-8b",
) -> None:
    """Run as many parts as time allows; exit with 1 if a part was not completed."""
    end = time.monotonic() + seconds
    if unknown := {*(only or ()), *(skip or ())} - set(NAMES):
        raise typer.BadParameter(f"{unknown.pop()!r} is none of {', '.join(NAMES)}")
    chosen = [
        part
        for part in parts(peer and peer.resolve(), peer_name, shape)
        if (not only or part.name in only) and part.name not in (skip or ())
    ]
    endings = run(chosen, output_folder, end)
    for ending in endings:
        say(f"{ending.name:12} {ending.seconds:6.1f} s  {ending.result}")
    if not all(ending.is_good for ending in endings):
        raise SystemExit(1)


def run(chosen: Sequence[Part], folder: Path, end: float) -> list[Ending]:
    """Run `chosen` until `end` on the monotonic clock; results go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ran: list[dict[str, Any]] = []
    record = Record(
        folder / "everything.json",
        [part.name for part in chosen],
        command="python -m benchmarks.gpu.everything",
        parts=ran,
        machine=machine.describe(),
    )
    endings = []
    for part in chosen:
        with record.part(part.name):
            ending = _run(part, folder / f"{part.name}.json", end - time.monotonic())
            endings.append(ending)
            ran.append(asdict(ending))
            if "benchmarks.gpu.tune" in part.command:
                shutil.copyfile(_PLANS, folder / _PLANS.name)
            if not ending.is_good:
                raise UnfinishedError(ending.result)
    return endings


def _run(part: Part, output: Path, left: float) -> Ending:
    if left < _LEAST_SECONDS:
        return Ending(part.name, 0.0, "not started: no time left")
    seconds = min(part.most_seconds, left)
    say(f"{part.name}: at most {seconds:.0f} s: {' '.join(part.command)}")
    begin = time.monotonic()
    # A killed process leaves gigabytes behind, and the next one needs the space.
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as temporary:
        process = subprocess.Popen(
            [sys.executable, *part.command, "--output", str(output.resolve())],
            cwd=_ROOT,
            env={**os.environ, "TMPDIR": temporary},
            process_group=0,
        )
        try:
            code = process.wait(seconds)
            result = "done" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            result = f"ended after {seconds:.0f} s: time limit reached"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Ending(part.name, round(time.monotonic() - begin, 1), result)


if __name__ == "__main__":
    typer.run(main)
