"""A real server in processes of its own: frontend, engine, sockets and files."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from loramux import Client

START_SECONDS = 90


class RunningServer:
    """`loramux serve`, from start to stop. Leaving the `with` sends SIGTERM and expects exit 0."""

    def __init__(self, folder: Path, model: Path, *arguments: str, **environment: str) -> None:
        """Prepare to serve `model`; files of the server are kept in `folder`.

        Starting twice on one folder is a restart: the store is kept.
        """
        self._environment = environment
        folder.mkdir(parents=True, exist_ok=True)
        self._ready = folder / "ready.json"
        self.log = folder / "server.log"
        self._command = [
            sys.executable, "-m", "loramux.cli", "serve", "--model", str(model),
            "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
            "--ready-file", str(self._ready), "--store", str(folder / "store"),
            # A token now and then would be among those that tests count, and a stream that nobody
            # reads is to wait for its test.
            "--threads", "1", "--drain-timeout", "5", "--probe-interval", "0",
            "--reader-timeout", "300", *arguments,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.target = ""
        """HOST:PORT of gRPC."""
        self.metrics_target = ""

    def launch(self) -> Self:
        """Start, and do not wait until requests are answered."""
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | self._environment,
            )  # fmt: skip
        return self

    def start(self) -> Self:
        self.launch()
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.exists():
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            if time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.05)
        addresses = json.loads(self._ready.read_text())
        self.target, self.metrics_target = addresses["grpc"], addresses["metrics"]
        return self

    @property
    def was_ready(self) -> bool:
        """Whether requests were answered since the last start."""
        return self._ready.exists()

    @property
    def pid(self) -> int:
        """Process id of the frontend."""
        assert self._process is not None
        return self._process.pid

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        children = psutil.Process(self.pid).children()
        (engine,) = [child for child in children if "engine.process" in " ".join(child.cmdline())]
        return int(engine.pid)

    def client(self, **options: Any) -> Client:
        """Return a client that shows every failure, unless `options` say otherwise."""
        return Client(self.target, **{"retries": False, **options})

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics, by its name with labels as it is printed."""
        with urllib.request.urlopen(f"http://{self.metrics_target}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def stay_at_address(self) -> None:
        """Be where it is now after each restart too."""
        self._command += ["--listen", self.target]

    def kill_engine(self) -> None:
        """Let the engine die as if memory had run out."""
        os.kill(self.engine_pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the frontend as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, number: int = signal.SIGTERM, *, whole_group: bool = False) -> int:
        """Send a signal, to the engine too if `whole_group`, and return the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            (os.killpg if whole_group else os.kill)(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended and return the exit code."""
        assert self._process is not None
        return self._process.wait(timeout=120)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        code = self.stop()
        if error is None:
            assert code == 0, f"exit code {code}:\n{self.log.read_text()}"
