"""A real gateway in a process of its own, in front of a server under test."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream; the last one is a text, `[DONE]`."""
        found = []
        for event in self.body.decode().split("\n\n")[:-1]:
            assert event.startswith("data: ")
            data = event.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        return found

    @property
    def error(self) -> Any:
        return self.json["error"]


class RunningGateway:
    """`loramux gateway`, from start to stop. Leaving the `with` sends SIGTERM and wants exit 0."""

    def __init__(
        self,
        folder: Path,
        target: str | Sequence[str],
        *arguments: str,
        authority: Path | None = None,
    ) -> None:
        """Prepare to stand before `target`, or several; the log is kept in `folder`.

        With `authority`, which signed the certificate, the server has TLS.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "gateway.log"
        self._tls = ssl.create_default_context(cafile=authority) if authority else None
        targets = [target] if isinstance(target, str) else target
        self._command = [
            sys.executable, "-m", "loramux.cli", *(["--ca", str(authority)] if authority else []),
            "gateway", *(f"--target={each}" for each in targets), "--port", "0", *arguments,
        ]  # fmt: skip
        self.url = self.metrics_url = ""
        """`http://HOST:PORT/v1`, and where the metrics are."""
        self._has_metrics = "--metrics" in arguments

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.split("/")[2].rpartition(":")
        return host, int(port)

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> http.client.HTTPConnection:
        if self._tls and self.url.startswith("https"):
            return http.client.HTTPSConnection(*self.address, timeout=120, context=self._tls)
        return http.client.HTTPConnection(*self.address, timeout=120)

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Send `body`, as JSON if it is not bytes, with `headers`, in whose names `_` means `-`."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, raw, {"content_type": "application/json"} | headers)

    def ask_json(self, method: str, path: str, body: object, **headers: str) -> Answer:
        """Send `body` as JSON by any method, or no body if it is None."""
        raw = None if body is None else json.dumps(body).encode()
        return self._ask(method, path, raw, {"content_type": "application/json"} | headers)

    def put(self, path: str, body: bytes, **headers: str) -> Answer:
        return self._ask("PUT", path, body, headers)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            reported = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, reported, response.read())
        finally:
            connection.close()

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        # The socket listens when this is written.
        self.url = self.process.stdout.readline().partition(" ")[0]
        assert self.url, f"the gateway did not start:\n{self.log.read_text()}"
        if self._has_metrics:
            self.metrics_url = self.process.stdout.readline().strip()
        return self

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        assert self.process.stdout is not None
        code = self.process.wait(timeout=120)
        self.process.stdout.close()
        return code

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
