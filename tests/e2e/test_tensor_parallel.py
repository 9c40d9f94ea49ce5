"""A server whose model two processes hold together."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loramux import Client
from loramux.errors import UnavailableError
from tests.support.polling import eventually, is_alive
from tests.support.server import RunningServer

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, tiny_adapters: Path
) -> Iterator[RunningServer]:
    arguments = ("--adapters", str(tiny_adapters), "--tensor-parallel", "2", "--device", "cpu")
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        with RunningServer(tmp_path_factory.mktemp("server"), roomy_base, *arguments) as server:
            yield server
    assert eventually(lambda: not list(folder.glob("loramux-*")))


def followers(server: RunningServer) -> list[int]:
    children = psutil.Process(server.engine_pid).children()
    return [child.pid for child in children if "engine.follower" in " ".join(child.cmdline())]


def completion(client: Client, adapter: str | None) -> tuple[int, ...]:
    return client.generate("hello", adapter=adapter, **GREEDY).token_ids


def test_a_follower_that_dies_ends_the_engine_and_another_comes(server: RunningServer) -> None:
    names = [None, "small", "single"]
    with server.client() as client:
        before = [completion(client, name) for name in names]
        engine, (follower,) = server.engine_pid, followers(server)
        stream = client.stream("hello", adapter="wide", **GREEDY | {"max_tokens": 100_000})
        next(stream)
        os.kill(follower, signal.SIGKILL)
        with pytest.raises(UnavailableError):
            list(stream)
        assert eventually(lambda: not is_alive(engine))
        assert eventually(lambda: bool(server.metrics()["loramux_engine_up"]), 120)
        assert [completion(client, name) for name in names] == before
        assert followers(server) != [follower]


def test_followers_end_with_an_engine_that_is_killed(server: RunningServer) -> None:
    (follower,) = followers(server)
    os.kill(server.engine_pid, signal.SIGKILL)
    assert eventually(lambda: not is_alive(follower))
