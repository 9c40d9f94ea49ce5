"""Our own server, started for a measurement."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 300


@contextlib.contextmanager
def running(folder: Path, model: Path, *arguments: str) -> Iterator[str]:
    """Run `loramux serve` on `model` and yield its HOST:PORT; its files are kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready.json", folder / "server.log"
    ready.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "loramux.cli", "serve", "--model", str(model),
        "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--ready-file", str(ready),
        "--store", str(folder / "store"), *arguments,
    ]  # fmt: skip
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready.exists():
                if run.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.1)
            yield json.loads(ready.read_text(encoding="utf-8"))["grpc"]
        finally:
            run.terminate()
