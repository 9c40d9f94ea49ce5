"""The names under which a gateway answers."""

import socket
from pathlib import Path

import pytest

from loramux.errors import InvalidArgumentError
from loramux.gateway.hosts import checked
from tests.support.gateway import RunningGateway

KNOWN = [
    "localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.1.2.3:80", "[::1]:8000",
    "models.example.org", "Models.Example.org.:443", "[fd00::1]:80",
]  # fmt: skip
UNKNOWN = [
    "", "rebound.example.org", "rebound.example.org:8000", "localhost.example.org", "192.168.0.7",
    "unix:8000", "example.org/127.0.0.1", "example.org@localhost", "[::2]", "[localhost", "0.0.0.0",
]  # fmt: skip


def status(gateway: RunningGateway, *hosts: str) -> bytes:
    """Return what the gateway says when asked by these names."""
    named = "".join(f"Host: {host}\r\n" for host in hosts)
    with socket.create_connection(gateway.address, timeout=60) as caller:
        caller.sendall(f"GET /v1/nothing HTTP/1.1\r\n{named}Connection: close\r\n\r\n".encode())
        return caller.makefile("rb").read().split()[1]


def test_on_loopback_only_names_of_the_gateway_are_answered(tmp_path: Path) -> None:
    more = ("--allowed-host", "models.example.org", "--allowed-host", "FD00::1")
    with RunningGateway(tmp_path, "127.0.0.1:1", *more) as gateway:
        assert [host for host in KNOWN if status(gateway, host) != b"404"] == []
        assert [host for host in UNKNOWN if status(gateway, host) != b"421"] == []
        assert status(gateway) == b"404"
        assert status(gateway, "localhost", "rebound.example.org") in (b"400", b"421")
        found = gateway.get("/health", host="rebound.example.org")
        assert (found.status, found.error["code"]) == (421, "unknown_host")
        assert "'rebound.example.org'" in found.error["message"]
        # Starlette by itself sends a caller on, to where Host says.
        found = gateway.get("/health/")
        assert (found.status, found.error["code"]) == (404, "not_found")


def test_what_others_can_reach_has_any_name(tmp_path: Path) -> None:
    exposed = ("--host", "0.0.0.0", "--insecure")
    with RunningGateway(tmp_path, "127.0.0.1:1", *exposed) as gateway:
        assert status(gateway, "models.example.org") == b"404"


@pytest.mark.parametrize("name", ["", "https://example.org", "example.org:443", "a b", "[]"])
def test_what_can_be_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--allowed-host"):
        checked(name)
