"""A gateway, and callers who send without end."""

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.gateway import RunningGateway

LINE = b"x-a: " + b"b" * 8000 + b"\r\n"
SENT = 32 << 20
"""Bytes; more than has room in the system between two processes."""
POST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
GET = b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n"
FLOODS = {
    "headers": (GET, LINE * 20),
    "trailers": (POST + b"0\r\n", LINE * 20),
    "value": (GET + b"x-a: ", b"b" * 65536),
    "name": (GET, b"b" * 65536),
    "url": (b"GET /v1/nothing?", b"b" * 65536),
    "lines": (b"", b"\r\n" * 32768),
    "size of a piece": (POST + b"1;", b"b" * 65536),
    "requests": (b"", (GET + b"\r\n") * 1000),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Stand before no server: none of this gets as far as that."""
    with RunningGateway(tmp_path_factory.mktemp("gateway"), "127.0.0.1:1") as gateway:
        yield gateway


def send(gateway: RunningGateway, start: bytes, more: bytes) -> None:
    with socket.create_connection(gateway.address, timeout=60) as caller:
        caller.sendall(start)
        for _ in range(SENT // len(more)):
            caller.sendall(more)


@pytest.mark.parametrize("flood", FLOODS)
def test_a_head_without_end_is_ended(gateway: RunningGateway, flood: str) -> None:
    start, more = FLOODS[flood]
    process = psutil.Process(gateway.pid)
    before = process.memory_info().rss
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send(gateway, start, more)
    assert process.memory_info().rss - before < SENT // 2
    assert gateway.get("/v1/nothing").status == 404


def test_what_is_too_large_is_said(gateway: RunningGateway) -> None:
    many = {f"x_{number}": "y" for number in range(101)}
    found = gateway.get("/v1/nothing", **many)
    assert (found.status, found.error["code"]) == (431, "head_too_large")
    assert (found.error["type"], found.headers["connection"]) == ("invalid_request_error", "close")
    found = gateway.get("/v1/nothing", x_a="y" * 60_000)
    assert (found.status, found.error["code"]) == (404, "not_found")


def test_what_is_no_http_is_said(gateway: RunningGateway) -> None:
    with socket.create_connection(gateway.address, timeout=60) as caller:
        caller.sendall(b"hello\r\n\r\n")
        found = caller.makefile("rb").read()
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"malformed_request"' in found


def test_headers_after_a_body_are_not_taken_for_those_of_the_request(
    gateway: RunningGateway,
) -> None:
    with socket.create_connection(gateway.address, timeout=60) as caller:
        caller.sendall(
            POST.replace(b"Host", b"Connection: close\r\nHost")
            + b"1\r\n{\r\n0\r\nx-request-id: late\r\n\r\n"
        )
        found = caller.makefile("rb").read()
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"late" not in found


def test_as_many_files_may_be_open_as_connections(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"no process may open more than {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        with RunningGateway(tmp_path, "127.0.0.1:1") as gateway:
            assert gateway.get("/v1/nothing").status == 404
            found, _ = psutil.Process(gateway.pid).rlimit(psutil.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found >= wanted
