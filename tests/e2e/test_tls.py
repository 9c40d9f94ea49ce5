"""Encrypted connections: who can connect, and as whom."""

import functools
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from loramux import Client
from loramux.errors import LoramuxError
from loramux_server.access.caller import Role
from tests.support.access import Keys
from tests.support.certificates import Authority
from tests.support.polling import eventually
from tests.support.server import RunningServer

DOMAIN = "example.org"
Pair = tuple[Path, Path]


class Site:
    """A server with TLS that demands certificates of its clients, and those certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "certificates")
        self.pair = self.authority.issue("server")
        self.keys = Keys(folder / "store")
        self.key = self.keys.make("acme", Role.USER)
        self.target = ""
        self.metrics_target = ""
        self._num_named = 0

    def arguments(self) -> list[str]:
        return [
            "--tls-cert", str(self.pair[0]), "--tls-key", str(self.pair[1]),
            "--tls-client-ca", str(self.authority.path), "--tls-client-domain", DOMAIN,
            "--metrics", "0.0.0.0:0",
        ]  # fmt: skip

    def client(self, pair: Pair | None, key: str = "") -> Client:
        mine = (pair[1].read_bytes(), pair[0].read_bytes()) if pair else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.path.read_bytes(), *mine)
        return Client(self.target, key=key, credentials=credentials, timeout=60)

    def named(self, name: str) -> Pair:
        self._num_named += 1
        return self.authority.issue(f"client{self._num_named}", uris=(name,))

    def peer_certificate(self, port: int) -> bytes:
        """Return the certificate that the server shows to who connects now."""
        context = ssl.create_default_context(cafile=self.authority.path)
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(*self.named("spiffe://nobody"))
        with (
            socket.create_connection(("127.0.0.1", port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""

    def shows(self, certificate: bytes, port: int) -> bool:
        return self.peer_certificate(port) == certificate


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("server"))
    arguments = ["--adapters", str(tiny_adapters), *site.arguments()]
    with RunningServer(site.folder, tiny_base, *arguments) as server:
        site.target, site.metrics_target = server.target, server.metrics_target
        yield site
    site.keys.close()


def outcome(client: Client) -> str:
    """Return how a call ends: its status in words, or `ok`."""
    with client:
        try:
            client.generate("a", max_tokens=1, adapter="public/small")
        except LoramuxError as error:
            return error.code.name
    return "ok"


def test_a_key_works_through_tls(site: Site) -> None:
    pair = site.named("spiffe://elsewhere.org/tenant/acme/role/admin")
    assert outcome(site.client(pair, site.key.text)) == "ok"
    assert outcome(site.client(pair)) == "UNAUTHENTICATED"


def test_a_certificate_stands_for_a_key(site: Site) -> None:
    for role, expected in (("user", "ok"), ("viewer", "PERMISSION_DENIED")):
        pair = site.named(f"spiffe://{DOMAIN}/tenant/acme/role/{role}")
        assert outcome(site.client(pair)) == expected


def test_key_and_certificate_have_to_agree(site: Site) -> None:
    same = site.named(f"spiffe://{DOMAIN}/tenant/acme/role/viewer")
    other = site.named(f"spiffe://{DOMAIN}/tenant/other/role/user")
    assert outcome(site.client(same, site.key.text)) == "ok"  # what the key may
    assert outcome(site.client(other, site.key.text)) == "PERMISSION_DENIED"
    assert outcome(site.client(same, site.key.text[:-1])) == "UNAUTHENTICATED"


def test_who_has_no_certificate_cannot_connect(site: Site) -> None:
    stranger = Authority(site.folder / "strangers", "stranger")
    clients = [
        site.client(None, site.key.text),
        site.client(stranger.issue("client"), site.key.text),
        Client(site.target, key=site.key.text, tls=False, timeout=60),
    ]
    with ThreadPoolExecutor(len(clients)) as pool:  # each tries again for a while
        assert list(pool.map(outcome, clients)) == ["UNAVAILABLE"] * len(clients)


def test_the_metrics_want_a_certificate_too(site: Site) -> None:
    port = site.metrics_target.rpartition(":")[2]
    context = ssl.create_default_context(cafile=site.authority.path)
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=context)
    context.load_cert_chain(*site.named("spiffe://anybody"))
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=context) as page:
        assert b"loramux_requests" in page.read()


def test_certificates_are_replaced_while_the_server_runs(site: Site) -> None:
    port = int(site.target.rpartition(":")[2])
    metrics_port = int(site.metrics_target.rpartition(":")[2])
    before = site.peer_certificate(port)
    going = site.client(site.named(f"spiffe://{DOMAIN}/tenant/acme/role/user"))
    with going:
        stream = going.stream("a", max_tokens=200, ignore_eos=True)
        next(stream)
        pair = site.authority.issue("newer")
        # One of the two first: they do not match for a while.
        shutil.copy(pair[0], site.pair[0])
        assert site.peer_certificate(port) == before
        shutil.copy(pair[1], site.pair[1])
        expected = ssl.PEM_cert_to_DER_cert(pair[0].read_text())
        for where in (port, metrics_port):
            assert eventually(functools.partial(site.shows, expected, where))
        assert sum(len(chunk.token_ids) for chunk in stream) > 0
    assert outcome(site.client(site.named(f"spiffe://{DOMAIN}/tenant/acme/role/user"))) == "ok"


def test_what_would_be_open_to_all_does_not_start(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "loramux.cli", "serve", "--model", "none",
        "--store", str(tmp_path / "store"), "--listen", "0.0.0.0:0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("loramux:")]
    assert "TLS: set --tls-cert and --tls-key" in line
