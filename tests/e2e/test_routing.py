"""Three real servers, each with all adapters: who gets which calls, from clients and a gateway."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from loramux import AsyncClient, Client
from loramux._routing.rendezvous import order
from loramux.errors import LoramuxError
from tests.support.adapters import save_adapter
from tests.support.demo import DEMO
from tests.support.gateway import RunningGateway
from tests.support.polling import eventually
from tests.support.server import RunningServer

ADAPTERS = sorted(path.name for path in (DEMO / "adapters").iterdir())
CHUNK = 512 << 10


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningServer]]:
    arguments = ("--adapters", str(DEMO / "adapters"))
    servers = [
        RunningServer(tmp_path_factory.mktemp("server"), DEMO / "base", *arguments)
        for _ in range(3)
    ]
    with ExitStack() as running, ThreadPoolExecutor(3) as pool:
        list(pool.map(RunningServer.start, servers))
        for server in servers:
            running.push(server)
            server.stay_at_address()
        yield servers


@pytest.fixture
def targets(servers: list[RunningServer]) -> list[str]:
    return [server.target for server in servers]


def requests(server: RunningServer) -> Counter[str]:
    """Return how many requests for each adapter a server had since it started."""
    with server.client() as client:
        return Counter({each.name: each.status.requests for each in client.adapters.list()})


def asked(servers: list[RunningServer], before: list[Counter[str]]) -> dict[str, list[int]]:
    """Return for each adapter how many requests went to which server."""
    after = [requests(server) for server in servers]
    return {
        name: [now[name] - then[name] for now, then in zip(after, before, strict=True)]
        for name in ADAPTERS
    }


def owner(servers: list[RunningServer], adapter: str) -> RunningServer:
    """Return the server whose adapter it is."""
    by_target = {server.target: server for server in servers}
    return by_target[order(adapter, tuple(by_target))[0]]


def test_calls_for_an_adapter_reach_one_server(
    servers: list[RunningServer], targets: list[str], tmp_path: Path
) -> None:
    before = [requests(server) for server in servers]

    async def ask() -> None:
        async with AsyncClient(targets) as client:
            for name in ADAPTERS:
                await client.generate("cat ->", adapter=name, max_tokens=1)
                async for _ in client.stream("cat ->", adapter=name, max_tokens=1):
                    pass

    with Client(targets) as client:
        for name in ADAPTERS:
            client.generate("cat ->", adapter=name, max_tokens=1)
            for _ in client.stream("cat ->", adapter=name, max_tokens=1):
                pass
    asyncio.run(ask())
    with RunningGateway(tmp_path, targets, "--routing", "adapter") as gateway:
        for name in ADAPTERS:
            body = {"model": name, "prompt": "cat ->", "max_tokens": 1}
            assert gateway.post("/v1/completions", body).status == 200
            assert gateway.post("/v1/completions", body | {"stream": True}).status == 200
    for name, counts in asked(servers, before).items():
        assert counts == [6 if server is owner(servers, name) else 0 for server in servers]
    loads = [
        server.metrics()['loramux_adapter_cache_misses_total{tier="device"}'] for server in servers
    ]
    assert sum(loads) == len(ADAPTERS)
    with Client(targets) as client:
        assert client.adapters.prefetch("upper").status.loads == 1


def test_a_hot_adapter_spreads_as_far_as_its_calls_demand(
    servers: list[RunningServer], targets: list[str]
) -> None:
    before = [requests(server) for server in servers]
    with Client(targets) as client:
        streams = [
            client.stream("cat ->", adapter="upper", max_tokens=8, ignore_eos=True)
            for _ in range(12)
        ]
        for stream in streams:
            next(stream)
        for stream in streams:
            for _ in stream:
                pass
    counts = sorted(asked(servers, before)["upper"])
    assert counts == [0, 4, 8]


def test_adapters_of_a_server_that_drains_move_and_come_back(
    servers: list[RunningServer], targets: list[str]
) -> None:
    draining = owner(servers, "upper")
    others = [server for server in servers if server is not draining]
    with Client(targets) as client, ThreadPoolExecutor(1) as pool:
        before = [requests(server) for server in others]
        ended = pool.submit(draining.stop)

        def moved() -> bool:
            client.generate("cat ->", adapter="upper", max_tokens=1)  # no call fails
            return any(asked(others, before)["upper"])

        assert eventually(moved)
        assert ended.result() == 0
        client.generate("cat ->", adapter="upper", max_tokens=1)
        least, most = sorted(asked(others, before)["upper"])
        assert least == 0
        assert most >= 2
        draining.start()

        def is_back() -> bool:
            client.generate("cat ->", adapter="upper", max_tokens=1)
            return requests(draining)["upper"] > 0

        assert eventually(is_back)


def test_an_upload_goes_on_at_the_server_that_has_its_beginning(
    servers: list[RunningServer], targets: list[str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO / "base")
    folder = save_adapter(model, tmp_path / "large", seed=0, r=48, target_modules="all-linear")
    home = owner(servers, "large")
    staging = home.log.parent / "store" / "staging"
    reported: list[int] = []

    def breaks(sent: int, _: int) -> None:
        if sent > CHUNK:
            assert eventually(lambda: any(f.stat().st_size >= CHUNK for f in staging.iterdir()))
            first.close()

    async def goes_on() -> None:
        async with AsyncClient(targets, routing="round_robin") as client:
            await client.adapters.upload(
                "large", folder, progress=lambda sent, _: reported.append(sent)
            )

    with Client(targets) as first, pytest.raises((LoramuxError, ValueError)):
        first.adapters.upload("large", folder, progress=breaks)
    asyncio.run(goes_on())
    assert reported[0] >= CHUNK
    for server in servers:
        with server.client() as client:
            has_it = any(each.name == "large" for each in client.adapters.list())
            assert has_it == (server is home)
    with Client(targets) as client:
        assert client.generate("cat ->", adapter="large", max_tokens=1).adapter is not None


def test_a_console_is_about_one_server_at_a_time(
    servers: list[RunningServer], targets: list[str], tmp_path: Path
) -> None:
    with RunningGateway(tmp_path, targets, "--console") as gateway:
        assert gateway.get("/console/api/server").json["servers"] == 3
        body = {"name": "reverse", "alias": "seen", "weights": {"1": 1}}
        for number in (0, 2):
            path = f"/console/api/aliases/set?server={number}"
            assert gateway.post(path, body).json == {"1": 1}
        assert gateway.post("/console/api/aliases/set?server=3", body).status == 400
    in_order = sorted(servers, key=lambda server: server.target)
    for server, has_it in zip(in_order, (True, False, True), strict=True):
        with server.client() as client:
            assert ("seen" in client.adapters.aliases("reverse")) is has_it
            if has_it:
                client.adapters.delete_alias("reverse", "seen")
