"""How long a connection to the gateway is kept for nothing, and how many there may be."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramux.gateway.connection import Connection, Limits
from tests.support.polling import eventually

SHORT = 0.4
LONG = 1000.0
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
EARLY = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"

HALVES = (b"", b"\r\n", b"GET /", b"GET / HTTP/1.1\r\nHost:", EARLY, EARLY + b"bo")


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def early(request: Request) -> Response:
    """Answer before the body is there, and without it."""
    return Response(b"early")


async def large(request: Request) -> Response:
    headers = {"connection": "close"} if "close" in request.query_params else None
    return Response(b"x" * int(request.query_params["size"]), headers=headers)


@contextmanager
def serving(limits: Limits) -> Iterator[tuple[uvicorn.Server, tuple[str, int]]]:
    """Yield a server whose connections have `limits`, and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    # Little fits in there, so that a caller who does not read is met soon.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    routes = [
        Route("/echo", echo, methods=["POST"]), Route("/early", early, methods=["POST"]),
        Route("/large", large),
    ]  # fmt: skip
    config = uvicorn.Config(
        Starlette(routes=routes),
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", partial(Connection, limits=limits)),
        ws="none",
        log_level="error",
        timeout_keep_alive=int(LONG),
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield server, listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def connect(address: tuple[str, int], room: int | None = None) -> socket.socket:
    caller = socket.socket()
    caller.settimeout(60)
    if room is not None:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    caller.connect(address)
    return caller


def test_who_says_nothing_or_half_of_it_is_sent_away() -> None:
    with serving(Limits(head=SHORT)) as (_, address):
        callers = [connect(address) for _ in HALVES]
        for caller, half in zip(callers, HALVES, strict=True):
            caller.sendall(half)
        for caller in callers:
            with caller:
                while caller.recv(4096):  # what was answered, then the end
                    pass


def test_what_takes_its_time_within_a_request_or_between_two_is_kept() -> None:
    def is_kept(address: tuple[str, int]) -> bool:
        # A machine that stops for long between two of these lines is no reason to fail.
        try:
            with connect(address) as caller:
                for head in (HEAD, HEAD):
                    caller.sendall(head)
                    time.sleep(1.5 * SHORT)
                    caller.sendall(b"body")
                    assert b"200 OK" in caller.recv(4096)
                    time.sleep(1.5 * SHORT)
                return True
        except (ConnectionError, AssertionError):
            return False

    with serving(Limits(head=SHORT)) as (_, address):
        assert eventually(lambda: is_kept(address))


def test_above_so_many_connections_others_are_sent_away() -> None:
    def is_taken(address: tuple[str, int]) -> bool:
        try:
            with connect(address) as caller:
                caller.sendall(HEAD + b"body")
                return b"200 OK" in caller.recv(4096)
        except ConnectionError:
            return False

    with serving(Limits(max_connections=2, head=LONG)) as (_, address):
        first, second = connect(address), connect(address)
        with connect(address) as third:
            found = third.makefile("rb").read()
        assert found.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"too_many_connections"' in found
        second.close()
        assert eventually(lambda: is_taken(address))
        first.close()


@pytest.mark.parametrize("asked", ["size=16000000", "size=16000000&close", "size=50000&close"])
def test_an_answer_that_nobody_reads_is_given_up(asked: str) -> None:
    with (
        serving(Limits(unread=SHORT)) as (server, address),
        connect(address, room=4096) as caller,
    ):
        caller.sendall(f"GET /large?{asked} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert eventually(lambda: server.server_state.total_requests == 1)
        assert eventually(lambda: not server.server_state.connections)


def test_an_answer_that_is_read_slowly_is_whole() -> None:
    with (
        serving(Limits(unread=LONG)) as (_, address),
        connect(address, room=4096) as caller,
    ):
        caller.sendall(b"GET /large?size=5000000&close HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(SHORT)
        assert caller.makefile("rb").read().endswith(b"\r\n\r\n" + b"x" * 5_000_000)
