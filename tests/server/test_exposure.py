"""What may be opened where other machines can reach it, and the certificates that it takes."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from loramux_server.access.certificates import Certificates
from loramux_server.access.exposure import check_exposure, is_loopback
from loramux_server.access.tls import ServerTls
from loramux_server.config import ConfigError, make_config
from tests.support.certificates import Authority

TLS = {"tls_cert": "a", "tls_key": "b"}
MUTUAL = TLS | {"tls_client_ca": "c"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("127.9.9.9", True),
        ("0.0.0.0", False), ("[::]", False), ("10.0.0.1", False), ("no.such.host.invalid", False),
    ],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("settings", "knows_callers", "lacks"),
    [
        ({}, False, None),
        ({"listen": "0.0.0.0:1"}, True, "--tls-cert and --tls-key"),
        ({"listen": "0.0.0.0:1"}, False, "--tls-key and keys: make one with"),
        ({"listen": "[::]:1", **TLS}, False, "lacks keys: make one with"),
        ({"listen": "0.0.0.0:1", **TLS}, True, None),
        ({"listen": "0.0.0.0:1", "insecure": True}, False, None),
        ({"metrics": "0.0.0.0:1"}, True, "--tls-client-ca"),
        ({"metrics": "0.0.0.0:1", **TLS}, True, "--tls-client-ca"),
        ({"metrics": "0.0.0.0:1", **MUTUAL}, True, None),
        ({"metrics": "0.0.0.0:1", "insecure": True}, True, None),
    ],
)
def test_what_others_reach_is_closed_or_refused(
    settings: dict[str, Any], knows_callers: bool, lacks: str | None
) -> None:
    config = make_config({"model": "m", **settings})
    if lacks is None:
        check_exposure(config, knows_callers=knows_callers)
        return
    with pytest.raises(ConfigError) as caught:
        check_exposure(config, knows_callers=knows_callers)
    assert lacks in str(caught.value)
    assert "--insecure" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_cert": "a"}, "--tls-cert is set; set --tls-key, too"),
        ({"tls_key": "a"}, "--tls-key is set; set --tls-cert, too"),
        ({"tls_client_ca": "a"}, "--tls-client-ca is set; set --tls-cert, too"),
        ({**TLS, "tls_client_domain": "a"}, "--tls-client-domain is set; set --tls-client-ca, too"),
        ({**MUTUAL, "tls_client_domain": "a/b"}, "--tls-client-domain is 'a/b'"),
    ],
)
def test_settings_that_need_each_other(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_config({"model": "m", **settings})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


def test_a_pair_that_cannot_serve_is_refused(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("one")
    _, other_key = authority.issue("two")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    assert ServerTls(certificate, key, authority.path).credentials()
    for pair, says in (
        ((certificate, other_key), "it does not match the first certificate"),
        ((certificate, tmp_path / "gone"), "No such file"),
        ((junk, key), "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=says):
            ServerTls(*pair, None)
    with pytest.raises(ConfigError, match="--tls-client-ca"):
        ServerTls(certificate, key, junk)


def test_a_config_without_a_certificate_has_no_tls(authority: Authority) -> None:
    assert ServerTls.of(make_config({"model": ""})) is None
    certificate, key = authority.issue("one")
    settings: dict[str, object] = {"model": "", "tls_cert": str(certificate), "tls_key": str(key)}
    tls = ServerTls.of(make_config(settings))
    assert tls
    assert (tls.certificate, tls.key, tls.client_ca) == (certificate, key, None)
    tls = ServerTls.of(make_config(settings | {"tls_client_ca": str(authority.path)}))
    assert tls
    assert tls.client_ca == authority.path


def test_files_that_change_are_taken_when_they_match(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("one")
    tls = ServerTls(certificate, key, None)
    changes: list[None] = []
    tls.on_change = lambda: changes.append(None)
    tls.refresh()
    newer = authority.issue("two")
    with caplog.at_level(logging.INFO):
        shutil.copy(newer[0], certificate)
        for _ in range(3):
            tls.refresh()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert changes == []
        shutil.copy(newer[1], key)
        for _ in range(3):
            tls.refresh()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert len(changes) == 1


@pytest.mark.parametrize(
    ("names", "tenant"),
    [
        (["spiffe://a.org/tenant/acme/role/user"], "acme"),
        (["https://x", "spiffe://a.org/tenant/acme/role/user"], "acme"),
        (["spiffe://a.org/tenant/acme/role/user", "spiffe://a.org/tenant/b/role/user"], None),
        (["spiffe://aXorg/tenant/acme/role/user"], None),
        (["spiffe://a.org.evil/tenant/acme/role/user"], None),
        (["spiffe://a.org/tenant/acme/role/root"], None),
        (["spiffe://a.org/tenant/Acme/role/user"], None),
        (["spiffe://a.org/tenant/acme/role/user/more"], None),
        (["spiffe://a.org/tenant/acme/role/user\n"], None),
        (["a.org/tenant/acme/role/user"], None),
        ([], None),
    ],
)
def test_a_certificate_names_one_caller_or_none(names: list[str], tenant: str | None) -> None:
    peer = {
        "x509_common_name": [b"spiffe://a.org/tenant/cn/role/admin"],
        "x509_subject_alternative_name": [b"spiffe://a.org/tenant/dns/role/admin"],
        "peer_uri": [name.encode() for name in names],
    }
    found = Certificates("a.org").caller(peer)
    assert (found.tenant if found else None) == tenant
