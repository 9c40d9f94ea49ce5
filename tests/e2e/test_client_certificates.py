"""What connects to a server that demands certificates of its clients."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loramux import Client
from loramux.aio import AsyncClient
from loramux.cli.gateway import EXIT_CONFIG
from loramux.errors import InvalidArgumentError, UnavailableError
from loramux_server.access.caller import Role
from loramux_server.config import ConfigError, make_config
from loramux_server.origins import primary_of
from tests.support.access import Keys
from tests.support.certificates import Authority
from tests.support.fake_server import FakeServer
from tests.support.gateway import RunningGateway
from tests.support.polling import eventually

DOMAIN = "example.org"
Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Site:
    """A server, its authority, and certificates that it takes."""

    target: str
    authority: Authority
    plain: Pair
    """Names nobody."""
    admin: Pair
    """Names an administrator."""
    key: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    authority = Authority(folder / "certificates")
    pair = authority.issue("server")
    plain = authority.issue("plain", uris=(f"spiffe://{DOMAIN}/ns/default/sa/gateway",))
    admin = authority.issue("admin", uris=(f"spiffe://{DOMAIN}/tenant/public/role/admin",))
    keys = Keys(folder / "server" / "store")
    key = keys.make("public", Role.ADMIN).text
    keys.close()
    arguments = (
        "--tls-cert", str(pair[0]), "--tls-key", str(pair[1]), "--tls-client-ca",
        str(authority.path), "--tls-client-domain", DOMAIN,
    )  # fmt: skip
    with FakeServer(folder / "server", *arguments) as server:
        yield Site(server.target, authority, plain, admin, key)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loramux.cli", *arguments], env=os.environ | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


async def test_a_client_presents_its_certificate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = site.authority.path
    with Client(site.target, tls=authority, certificate=site.admin) as client:
        assert client.info().base_model == "fake"
    async with AsyncClient(
        site.target, tls=authority, certificate=site.plain, key=site.key
    ) as aio_client:
        assert (await aio_client.info()).base_model == "fake"
    with (
        Client(site.target, tls=authority, key=site.key, retries=False) as stranger,
        pytest.raises(UnavailableError),
    ):
        stranger.info()
    monkeypatch.setenv("LORAMUX_CA", str(authority))
    monkeypatch.setenv("LORAMUX_CERT", str(site.admin[0]))
    with pytest.raises(InvalidArgumentError, match="LORAMUX_CERT and LORAMUX_CERT_KEY"):
        Client(site.target)
    monkeypatch.setenv("LORAMUX_CERT_KEY", str(site.admin[1]))
    with Client(site.target) as client:
        assert client.info().base_model == "fake"
    Client(site.target, tls=False).close()  # what is in the environment is no demand


@pytest.mark.parametrize("made", [Client, AsyncClient])
async def test_a_certificate_that_cannot_be_used_is_refused_by_name(
    site: Site, tmp_path: Path, made: Callable[..., object]
) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for pair, reported in (
        ((empty, site.plain[1]), f"certificate {empty}: it contains no PEM certificate"),
        ((site.plain[0], empty), f"key of the certificate {empty}: it contains no PEM private key"),
        ((site.plain[0], site.admin[1]), "it does not match the first certificate in"),
    ):
        with pytest.raises(InvalidArgumentError, match=reported) as caught:
            made("localhost:1", certificate=pair)
        assert caught.value.field == "certificate"
    with pytest.raises(InvalidArgumentError, match="client certificates require TLS"):
        made("localhost:1", certificate=site.plain, tls=False)
    with pytest.raises(FileNotFoundError):
        made("localhost:1", certificate=(tmp_path / "no.pem", site.plain[1]))


def test_the_command_line_presents_one(site: Site) -> None:
    health = ("health", "--server", site.target)
    certificate, key = map(str, site.plain)
    given = ("--ca", str(site.authority.path), "--cert", certificate, "--cert-key", key)
    assert command(*given, *health).stdout == "SERVING\n"
    environment = {
        "LORAMUX_CA": str(site.authority.path), "LORAMUX_CERT": certificate,
        "LORAMUX_CERT_KEY": key,
    }  # fmt: skip
    assert command(*health, **environment).stdout == "SERVING\n"
    assert command(*given[:2], *health, "--timeout", "2").returncode == 1


def test_a_gateway_takes_in_a_new_certificate(site: Site, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "strangers", "stranger").issue("client")
    used = [Path(shutil.copy(path, tmp_path / f"used{path.suffix}")) for path in stranger]
    with RunningGateway(
        tmp_path, site.target, "--no-retries",
        "--target-cert", str(used[0]), "--target-key", str(used[1]), authority=site.authority.path,
    ) as gateway:  # fmt: skip
        body = {"model": "fake", "prompt": [1], "max_tokens": 2}

        def status(**headers: str) -> int:
            return gateway.post("/v1/completions", body, **headers).status

        known = f"Bearer {site.key}"
        assert status(authorization=known) == 503
        shutil.copy(site.plain[0], used[0])
        assert eventually(lambda: "does not match the first certificate" in gateway.log.read_text())
        assert status(authorization=known) == 503
        shutil.copy(site.plain[1], used[1])
        assert eventually(lambda: status(authorization=known) == 200)
        assert status() == 401


def test_a_gateway_that_others_reach_is_nobody(site: Site, tmp_path: Path) -> None:
    certificate, key = map(str, site.admin)
    arguments = (
        "gateway", "--target", site.target, "--port", "0", "--host", "0.0.0.0", "--insecure",
        "--target-cert", certificate,
    )  # fmt: skip
    done = command(*arguments, "--target-key", key, LORAMUX_CA=str(site.authority.path))
    assert done.returncode == EXIT_CONFIG
    assert f"it identifies the caller spiffe://{DOMAIN}/tenant/public/role/admin" in done.stderr
    done = command(*arguments)
    assert done.returncode == EXIT_CONFIG
    assert "--target-cert and --target-key go together" in done.stderr


async def test_a_replica_presents_one(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(site.key)
    settings: dict[str, object] = {
        "model": "m", "replica_of": site.target,
        "replica_key": str(file), "replica_ca": str(site.authority.path),
        "replica_cert": str(site.plain[0]), "replica_cert_key": str(site.plain[1]),
    }  # fmt: skip
    primary = primary_of(make_config(settings))
    assert primary is not None
    assert await primary.lineage()
    await primary.check_admin_key()
    await primary.close()
    named: dict[str, object] = {
        "replica_cert": str(site.admin[0]),
        "replica_cert_key": str(site.admin[1]),
    }
    for more, reported in (
        (named, "--replica-cert .*: it identifies the caller spiffe"),
        ({"replica_cert_key": None}, "--replica-cert is set; set --replica-cert-key, too"),
        ({"replica_of": None}, "--replica-key is set; set --replica-of, too"),
    ):
        with pytest.raises(ConfigError, match=reported):
            primary_of(make_config(settings | more))
