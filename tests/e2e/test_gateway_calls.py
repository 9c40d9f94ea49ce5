"""A gateway with TLS and keys, before a slow engine, and callers that do not behave."""

import json
import shutil
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loramux import Client
from loramux.cli.app import run as command_line
from loramux.cli.gateway import EXIT_CONFIG
from loramux.errors import FailedPreconditionError, InvalidArgumentError, LoramuxError
from loramux.gateway.process import Settings, run
from loramux_server.access.caller import Role
from loramux_server.store.policy import Policy
from tests.support.access import Keys
from tests.support.certificates import Authority
from tests.support.fake_server import FakeServer, answer
from tests.support.gateway import RunningGateway
from tests.support.polling import eventually

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = 4000
"""Tokens for which the engine takes a dozen seconds."""
UNREAD = 1000
"""More than has room between the server and a caller, where each is an event."""


@dataclass(frozen=True)
class Site:
    """A gateway, the server behind it, and its keys."""

    gateway: RunningGateway
    server: FakeServer
    authority: Path
    user: str
    viewer: str
    revoked: str
    admin: str
    few: str
    """Of a tenant that may have two requests at once."""

    def client(self) -> Client:
        return self.server.client(key=self.admin, tls=self.authority)

    def post(self, path: str = TEXT, /, key: str | None = None, **body: object) -> Any:
        body = {"model": "fake", "prompt": [1, 2], "max_tokens": 3} | body
        return self.gateway.post(path, body, authorization=f"Bearer {key or self.user}")

    def stream(self, **body: object) -> Any:
        """Return a connection on which a stream began, and its answer, of which nothing is read."""
        connection = self.gateway.connect()
        raw = json.dumps({"model": "fake", "prompt": [1, 2], "stream": True} | body)
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.user}"}
        connection.request("POST", TEXT, raw, headers)
        return connection

    def is_idle(self) -> bool:
        metrics = self.server.metrics()
        return metrics["loramux_requests_running"] == metrics["loramux_requests_paused"] == 0

    def num_running(self) -> float:
        return self.server.metrics()["loramux_requests_running"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    authority = Authority(folder / "certificates")
    pair = [str(path) for path in authority.issue("here")]
    tls = ["--tls-cert", pair[0], "--tls-key", pair[1]]
    keys = Keys(folder / "server" / "store")
    user, viewer, admin = (
        keys.make("acme", role).text for role in (Role.USER, Role.VIEWER, Role.ADMIN)
    )
    revoked = keys.revoked("acme", Role.USER).text
    few = keys.make("few", Role.USER).text
    keys.catalog.policies.set(Policy(tenant="few", concurrent_requests=2))
    keys.close()
    arguments = ("--reader-timeout", "60", *tls)
    with (
        FakeServer(folder / "server", *arguments, step_seconds=0.003) as server,
        RunningGateway(
            folder, server.target, "--no-retries", *tls, authority=authority.path
        ) as gateway,
    ):
        yield Site(gateway, server, authority.path, user, viewer, revoked, admin, few)


def test_a_key_goes_through_to_the_server(site: Site) -> None:
    found = site.post(return_token_ids=True)
    assert found.json["choices"][0]["token_ids"] == list(answer([1, 2], 3))
    for key in ("none", site.revoked, "lmx_" + "x" * 2000, "lmx_\u00e4"):
        found = site.post(key=key)
        assert (found.status, found.error["code"]) == (401, "unauthenticated")
        assert found.error["type"] == "authentication_error"
    found = site.post(key=site.viewer)
    assert (found.status, found.error["code"]) == (403, "permission_denied")
    models = "/v1/models"
    assert site.gateway.get(models).status == site.gateway.get(f"{models}/fake").status == 401
    shown = f"Bearer {site.viewer}"
    assert site.gateway.get(models, authorization=shown).json["data"][0]["id"] == "fake"
    assert site.gateway.get(models, x_api_key=site.viewer).json["data"][0]["id"] == "fake"
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    for key, status, kind in (
        ("none", 401, "authentication_error"), (site.viewer, 403, "permission_error"),
    ):  # fmt: skip
        found = site.gateway.post("/v1/messages", body, x_api_key=key)
        assert (found.status, found.error["type"]) == (status, kind)
    assert site.gateway.get("/health").status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_more_prompts_than_a_quota_ever_grants_are_refused_for_good(
    site: Site, stream: bool
) -> None:
    found = site.post(key=site.few, prompt=[[1], [2], [3]], stream=stream)
    assert (found.status, found.error["code"]) == (400, "quota_exceeded")
    assert found.error["param"] == "prompt"
    assert "3 prompts" in found.error["message"]
    assert "'few' is limited to 2 concurrent requests" in found.error["message"]
    assert not {"retry-after", "retry-after-ms"} & found.headers.keys()
    assert site.post(key=site.few, prompt=[[1], [2]]).status == 200
    assert site.post(prompt=[[1], [2], [3]]).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_takes_the_request_along(site: Site, stream: bool) -> None:
    with site.client() as client:
        before = client.load().generated_tokens
        connection = site.stream(stream=stream, max_tokens=LONG, n=4, best_of=4)
        assert eventually(lambda: site.num_running() == 4)
        connection.close()
        assert eventually(site.is_idle)
        assert client.load().generated_tokens - before < 4 * LONG


def test_a_stream_that_is_not_read_is_not_kept_in_memory(site: Site) -> None:
    """It is paused in the engine, as one over gRPC is, and whole in the end."""
    connection = site.gateway.connect()
    connection._create_connection = little_room  # type: ignore[attr-defined]
    raw = json.dumps({
        "model": "fake", "prompt": [1, 2], "stream": True, "max_tokens": UNREAD, "n": 8,
        "return_token_ids": True, "timeout": 100,
    })  # fmt: skip
    headers = {
        "content-type": "application/json", "authorization": f"Bearer {site.user}",
        "x-request-id": "x" * 128,  # which is in every event
    }  # fmt: skip
    connection.request("POST", TEXT, raw, headers)
    assert eventually(lambda: site.server.metrics()["loramux_requests_paused"] == 8)
    assert site.post().status == 200
    found: dict[int, list[int]] = {index: [] for index in range(8)}
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith("data: {"):
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            found[choice["index"]] += choice["token_ids"]
    connection.close()
    assert all(tuple(tokens) == answer([1, 2], UNREAD) for tokens in found.values())


def little_room(address: tuple[str, int], *_: object) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(address)
    return connection


def test_a_deadline_ends_a_request(site: Site) -> None:
    found = site.post(max_tokens=LONG, timeout=0.2)
    assert (found.status, found.error["code"]) == (504, "deadline_exceeded")
    found = site.post(max_tokens=LONG, timeout=0.5, stream=True)
    # On a busy machine it may end before the first piece.
    error = found.events[-1]["error"] if found.status == 200 else found.error
    assert error["code"] == "deadline_exceeded"
    assert eventually(site.is_idle)


def test_many_streams_and_whole_answers_run_side_by_side(site: Site) -> None:
    def one(number: int) -> bool:
        prompt, stream = [number % 200, 3], number % 2 == 0
        found = site.post(prompt=prompt, stream=stream, max_tokens=20, return_token_ids=True)
        answers = found.events[:-1] if stream else [found.json]
        tokens = [token for reported in answers for token in reported["choices"][0]["token_ids"]]
        return tuple(tokens) == answer(prompt, 20)

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(one, range(128)))
    assert eventually(site.is_idle)


def test_what_the_server_cannot_do_now_says_when_it_may(site: Site) -> None:
    asked = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    found = site.gateway.post(CHAT, asked, authorization=f"Bearer {site.user}")
    assert (found.status, found.error["param"]) == (400, "messages")
    site.server.kill_engine()
    found = site.post(max_tokens=LONG)
    if found.status != 200:  # it may be back already
        assert (found.status, found.error["type"]) == (503, "server_error")
        assert int(found.headers["retry-after"]) >= 1
    assert eventually(lambda: site.post().status == 200)


def test_a_gateway_that_is_stopped_finishes_what_is_under_way(site: Site, tmp_path: Path) -> None:
    target = site.server.target
    with RunningGateway(tmp_path, target, authority=site.authority) as gateway:
        raw = json.dumps({"model": "fake", "prompt": [5], "stream": True, "max_tokens": 200})
        headers = {"content-type": "application/json", "authorization": f"Bearer {site.user}"}
        connection = gateway.connect()
        connection.request("POST", TEXT, raw, headers)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: {")
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(gateway.stop)
            assert response.read().endswith(b"data: [DONE]\n\n")
            connection.close()
            assert ending.result() == 0


def test_a_server_that_is_away_is_unavailable_and_not_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = f"127.0.0.1:{taken.getsockname()[1]}"
    with RunningGateway(tmp_path, target, "--no-retries") as gateway:
        for found in (
            gateway.post(TEXT, {"model": "fake", "prompt": "x"}),
            gateway.get("/health"),
        ):
            assert (found.status, found.error["code"]) == (503, "unavailable")
            assert found.headers["retry-after"] == "1"
            assert b"127.0.0.1" not in found.body


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"host": "0.0.0.0"}, FailedPreconditionError, "has no TLS"),
        ({"tls_cert": Path("x")}, InvalidArgumentError, "go together"),
        ({"targets": ("models.example.org:50051",)}, InvalidArgumentError, "in plaintext"),
        ({"allowed_hosts": ("http://x",)}, InvalidArgumentError, "without scheme"),
        ({"lora_path_root": Path("nothing")}, InvalidArgumentError, "expected a folder"),
    ],
)
def test_nothing_is_opened_by_accident(
    options: dict[str, Any], error: type[LoramuxError], said: str
) -> None:
    settings: dict[str, Any] = {
        "targets": ("127.0.0.1:1",), "host": "127.0.0.1", "port": 0, "tls_cert": None,
        "tls_key": None, "insecure": False, "allowed_hosts": (), "retries": False,
        "routing": "adapter", "timeout": 1.0, "drain_timeout": 0, "console": False,
        "lora_path_root": None,
    }  # fmt: skip
    with pytest.raises(error, match=said):
        run(Settings(**settings | options))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "has no TLS"),
        (["--allowed-host", "http://x"], "without scheme"),
        (["--routing", "best"], "routing is 'best'"),
        (["--tls-cert", "nothing", "--tls-key", "nothing"], "No such file"),
        (["--tls-cert", __file__, "--tls-key", __file__], f"--tls-cert {__file__}: it contains no"),
    ],
    ids=["host", "allowed-host", "routing", "no file", "no certificate"],
)
def test_a_setting_that_is_wrong_is_one_line_and_the_exit_code_of_such(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["loramux", "gateway", "--port", "0", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line()
    assert ended.value.code == EXIT_CONFIG
    reported = capsys.readouterr().err
    assert said in reported
    assert reported.startswith("loramux: ")
    assert reported.count("\n") == 1


def test_a_certificate_is_read_again_while_it_runs(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    first, second = authority.issue("first"), authority.issue("second")
    used = [Path(shutil.copy(path, tmp_path / f"used{path.suffix}")) for path in first]
    context = ssl.create_default_context(cafile=authority.path)
    with RunningGateway(
        tmp_path, "127.0.0.1:1", "--tls-cert", str(used[0]), "--tls-key", str(used[1]),
        authority=authority.path,
    ) as gateway:  # fmt: skip

        def shown() -> str:
            with (
                socket.create_connection(gateway.address) as raw,
                context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
            ):
                return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")

        assert shown() == first[0].read_text()
        shutil.copy(second[0], used[0])
        assert eventually(lambda: "does not match the first certificate" in gateway.log.read_text())
        assert shown() == first[0].read_text()
        shutil.copy(second[1], used[1])
        assert eventually(lambda: shown() == second[0].read_text())
