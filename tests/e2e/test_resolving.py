"""Adapters that are fetched when a request names them, over the socket."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from loramux import AsyncClient, Client
from loramux.errors import FailedPreconditionError, NotFoundError, UnavailableError
from loramux_server.access.caller import Role
from loramux_server.config import ConfigError, make_config
from loramux_server.origins import primary_of, templates_of
from tests.support.access import Keys
from tests.support.fake_server import FakeServer
from tests.support.http_answers import answering
from tests.support.polling import eventually
from tests.support.server import RunningServer

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_adapters: Path) -> Path:
    """Folders of adapters by tenant; `a` is somebody's, `b` is in the second place alone."""
    folder = tmp_path_factory.mktemp("places")
    names = sorted(path.name for path in tiny_adapters.iterdir())
    for place, name in (
        ("first/acme/a", names[0]), ("first/public/a", names[1]), ("second/b", names[2]),
        ("first/other/secret", names[0]),
    ):  # fmt: skip
        shutil.copytree(tiny_adapters / name, folder / place)
    (folder / "second" / "broken").mkdir()
    shutil.copy(tiny_adapters / names[0] / "adapter_config.json", folder / "second" / "broken")
    (folder / "second" / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Iterator[Keys]:
    keys = Keys(folder / "store")
    yield keys
    keys.close()


@pytest.fixture(scope="module")
def server(folder: Path, tiny_base: Path, places: Path, keys: Keys) -> Iterator[RunningServer]:
    keys.make("acme", Role.USER)
    templates = (f"{places}/first/{{tenant}}/{{name}}", f"{places}/second/{{name}}")
    arguments = ["--resolve-ttl", "3600", "--resolve", templates[0], "--resolve", templates[1]]
    with RunningServer(folder, tiny_base, *arguments) as server:
        yield server


@pytest.fixture
def client(server: RunningServer, keys: Keys) -> Iterator[Client]:
    """A client of tenant acme, who may generate and nothing more."""
    key = keys.make("acme", Role.USER)
    with Client(server.target, key=key.text, timeout=60) as client:
        assert eventually(lambda: is_known(client))
        yield client


def is_known(client: Client) -> bool:
    try:
        client.info()
    except Exception:
        return False
    return True


def test_what_a_request_names_is_fetched_once(client: Client, server: RunningServer) -> None:
    assert client.adapters.list() == []
    answer = client.generate("hello", adapter="a", **GREEDY)
    assert answer.adapter and (answer.adapter.tenant, answer.adapter.version) == ("acme", 1)
    again = client.generate("hello", adapter="a:1", **GREEDY)
    assert again.adapter == answer.adapter
    (adapter,) = client.adapters.list()
    assert adapter.origin.endswith("/first/acme/a") and adapter.expires_at
    streamed = list(client.stream("hello", adapter="public/a", **GREEDY))
    assert streamed[0].adapter and streamed[0].adapter.digest != answer.adapter.digest
    assert len(client.tokenize("hello", adapter="b")) > 0
    assert server.log.read_text().count("fetched adapter acme/a:1") == 1
    assert server.log.read_text().count("act=adapter.resolve tenant=acme key=") == 3


def test_many_who_ask_at_once_wait_for_one_fetch(
    server: RunningServer, keys: Keys, places: Path
) -> None:
    shutil.copytree(places / "second" / "b", places / "second" / "crowd")
    key = keys.make("acme", Role.USER)

    async def ask() -> set[str]:
        async with AsyncClient(server.target, key=key.text) as client:
            answers = await asyncio.gather(
                *(client.generate("hello", adapter="crowd", **GREEDY) for _ in range(8))
            )
            return {str(answer.adapter) for answer in answers}

    with Client(server.target, key=key.text) as client:
        assert eventually(lambda: is_known(client))
    assert len(asyncio.run(ask())) == 1
    assert server.log.read_text().count("fetched adapter acme/crowd:1") == 1


def test_what_is_nowhere_is_not_found_as_ever(client: Client) -> None:
    for reference in ("nowhere", "b:2", "b:stable", "b@sha256:" + "0" * 64):
        with pytest.raises(NotFoundError) as caught:
            client.generate("hello", adapter=reference, **GREEDY)
        assert caught.value.reason == "ADAPTER_NOT_FOUND"
    with pytest.raises(NotFoundError, match="other/secret"):
        client.generate("hello", adapter="other/secret", **GREEDY)


def test_what_cannot_be_served_says_why_each_time(client: Client, server: RunningServer) -> None:
    ended = 'loramux_tenant_requests_total{outcome="failed_precondition",tenant="acme"}'
    before = server.metrics().get(ended, 0)
    for _ in range(2):
        with pytest.raises(FailedPreconditionError, match="'acme/broken' was found, but") as caught:
            client.generate("hello", adapter="broken", **GREEDY)
        assert (caught.value.reason, caught.value.field) == ("INVALID_ADAPTER_FILE", "adapter")
    assert server.metrics()[ended] == before + 2


class Slow:
    """A registry that waits before it answers that there is nothing, or that it is closed."""

    def __init__(self) -> None:
        self.was_asked, self.may_answer = threading.Event(), threading.Event()

    def answer(self, path: str, headers: Message) -> tuple[int, dict[str, str], bytes]:
        if "closed" in path:
            return 403, {}, b"{}"
        self.was_asked.set()
        assert self.may_answer.wait(60)
        return 404, {}, b"{}"


def asked_while_it_ends(server: FakeServer, slow: Slow, *, answers: bool) -> Exception | None:
    """Return what comes of a call that waits for a fetch while the server ends."""
    with server.client() as client, ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.generate, [5], adapter="slow")
        assert slow.was_asked.wait(30)
        ending = pool.submit(server.stop)
        if answers:
            assert eventually(lambda: "SIGTERM" in server.log.read_text() or is_ending(client))
            slow.may_answer.set()
        error = call.exception(30)
        slow.may_answer.set()
        assert ending.result() == 0
        return error if isinstance(error, Exception) else None


def is_ending(client: Client) -> bool:
    try:
        client.info()
    except UnavailableError:
        return True
    return False


def test_a_server_that_ends_waits_for_fetches_as_for_all_that_calls_need(tmp_path: Path) -> None:
    slow = Slow()
    with answering(slow.answer) as address:
        template = f"oci://{address.removeprefix('http://')}/{{name}}"
        options = ("--resolve", template, "--drain-timeout")
        with FakeServer(tmp_path, *options, "30") as server:
            with server.client() as client, pytest.raises(FailedPreconditionError) as caught:
                client.generate([5], adapter="closed")
            assert "its source denies" in str(caught.value)
            assert address.removeprefix("http://") not in str(caught.value)
            assert isinstance(asked_while_it_ends(server, slow, answers=True), NotFoundError)
        slow.was_asked.clear()
        slow.may_answer.clear()
        with FakeServer(tmp_path, *options, "0.3") as server:
            error = asked_while_it_ends(server, slow, answers=False)
            assert isinstance(error, UnavailableError)
            assert error.reason == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize(("settings", "said"), [
    ({"resolve": ["s3://bucket/{tenant}"]}, r"expected \{name\}"),
    ({"resolve": ["/mnt/{name}/{base}"]}, "no other braces"),
    ({"resolve": ["ftp://x/{name}"]}, "expected one that begins with"),
    ({"resolve": ["s3://{name}/adapter"]}, "lets callers choose the host, bucket"),
    ({"resolve": ["hf://{name}/adapter"]}, "lets callers choose the host, bucket"),
    ({"resolve": ["oci://x-{name}.example/adapter"]}, "lets callers choose the host, bucket"),
    ({"resolve_ttl": 5.0}, "it requires --resolve"),
    ({"resolve": ["/mnt/{name}"], "replica_of": "127.0.0.1:1"}, "--resolve cannot be used with"),
])  # fmt: skip
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], said: str) -> None:
    config = make_config({"model": "", **settings})

    def open_both() -> None:
        templates_of(config)
        primary_of(config)

    with pytest.raises(ConfigError, match=said):
        open_both()
