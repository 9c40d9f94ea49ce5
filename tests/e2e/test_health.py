"""`loramux health`: what an orchestrator asks, as an exit code."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramux_server.access.caller import Role
from tests.support.access import Keys
from tests.support.certificates import Authority
from tests.support.fake_server import FakeServer
from tests.support.polling import eventually

LONG = 4000


def health(target: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "loramux.cli", "health", "--server", target, *arguments],
        env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """A server that has keys, which nobody needs here."""
    folder = tmp_path_factory.mktemp("server")
    keys = Keys(folder / "store")
    keys.make("acme", Role.USER)
    keys.close()
    with FakeServer(folder) as server:
        yield server


@pytest.mark.parametrize("service", ["", "loramux.v1.GenerationService"])
def test_a_server_that_serves_is_well(server: FakeServer, service: str) -> None:
    assert health(server.target, "--service", service) == (0, "SERVING\n", "")


def test_a_key_that_is_around_goes_nowhere(server: FakeServer) -> None:
    # A key would be refused where a connection to another machine is not encrypted.
    code, _, errors = health("192.0.2.1:1", "--timeout", "0.1", LORAMUX_API_KEY="lmx_1_2")
    assert (code, "key" in errors) == (1, False)


def test_a_service_that_is_not_there_is_named(server: FakeServer) -> None:
    code, output, errors = health(server.target, "--service", "loramux.v1.Nobody")
    assert (code, output) == (1, "")
    assert errors == "loramux: --service loramux.v1.Nobody: the server has no such service\n"


def test_nobody_there_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, output, errors = health(f"127.0.0.1:{port}")
    assert (code, output) == (1, "")
    assert errors.startswith("loramux: ")
    assert errors.count("\n") == 1


def test_a_probe_trusts_an_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    certificate, key = authority.issue("server")
    arguments = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with FakeServer(tmp_path, *arguments) as server:
        assert health(server.target, LORAMUX_CA=str(authority.path))[0] == 0
        assert health(server.target, "--timeout", "1")[0] == 1


def test_a_server_that_drains_is_not_well(tmp_path: Path) -> None:
    served = FakeServer(tmp_path, "--drain-timeout", "300", step_seconds=0.1)
    with served as server, server.client() as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream([5], max_tokens=LONG)
        next(stream)
        ending = pool.submit(server.stop)
        drains = "loramux: the server is NOT_SERVING\n"
        assert eventually(lambda: health(server.target) == (1, "", drains))
        stream.close()  # type: ignore[attr-defined]
        assert ending.result() == 0
