"""A real gateway in a process of its own, in front of a server under test."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class RunningGateway:
    """`loramux gateway`, from start to stop. Leaving the `with` sends SIGTERM and expects exit 0."""

    def __init__(self, folder: Path, target: str, *arguments: str) -> None:
        """Prepare to stand before `target`; the log is kept in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "gateway.log"
        self._command = [
            sys.executable, "-m", "loramux.cli", "gateway", "--target", target, "--port", "0",
            *arguments,
        ]  # fmt: skip
        self.url = ""
        """`http://HOST:PORT/v1`."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.split("/")[2].rpartition(":")
        return host, int(port)

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        # The socket listens when this is written.
        self.url = self.process.stdout.readline().partition(" ")[0]
        assert self.url, f"the gateway did not start:\n{self.log.read_text()}"
        return self

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        assert self.process.stdout is not None
        with self.process.stdout:
            return self.process.wait(timeout=120)

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
