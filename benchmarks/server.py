"""Our own server, started for a measurement."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers requests."""

    target: str
    """HOST:PORT of gRPC."""
    metrics_target: str
    pid: int
    """Process id of the frontend; the engine is its child."""

    def processes(self) -> list[psutil.Process]:
        """Return the frontend and the engine."""
        frontend = psutil.Process(self.pid)
        return [frontend, *frontend.children()]

    def metric(self, name: str) -> float:
        """Return the sample of /metrics whose name with labels is printed as `name`."""
        with urllib.request.urlopen(f"http://{self.metrics_target}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return next(float(line.removeprefix(name)) for line in lines if line.startswith(f"{name} "))


@contextlib.contextmanager
def running(folder: Path, model: Path, *arguments: str) -> Iterator[Running]:
    """Run `loramux serve` on `model` for the block; its files are kept in `folder`.

    Speculation is off: random weights repeat themselves far more than trained ones.

    Starting again with the same folder is a restart: the store is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready.json", folder / "server.log"
    ready.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "loramux.cli", "serve", "--model", str(model),
        "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--ready-file", str(ready),
        "--store", str(folder / "store"), "--speculative-tokens", "0", *arguments,
    ]  # fmt: skip
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready.exists():
                if run.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.1)
            addresses = json.loads(ready.read_text(encoding="utf-8"))
            yield Running(addresses["grpc"], addresses["metrics"], run.pid)
        finally:
            run.terminate()
