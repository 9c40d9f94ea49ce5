"""Which files of certificates a server takes, at its start and while it runs."""

import asyncio
import logging
import os
import shutil
import ssl
from pathlib import Path, PosixPath

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from loramux_server.access.tls import ServerTls
from loramux_server.config import ConfigError, make_config
from tests.support.certificates import Authority


def test_a_server_has_certificates_if_it_is_given_any(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server")
    assert ServerTls.of(make_config({"model": ""})) is None
    config = make_config({"model": "", "tls_cert": str(certificate), "tls_key": str(key)})
    tls = ServerTls.of(config)
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (certificate, key, None)


@pytest.mark.parametrize(("damage", "says"), [
    ("encrypted", "--tls-key {key}: the key is encrypted"),
    ("of another", "--tls-key {key}: it does not match .* in --tls-cert {certificate}"),
    ("missing", "{key}: No such file"),
    ("no certificate", "--tls-cert {certificate}: it contains no PEM certificate"),
    ("no key", "--tls-key {key}: it contains no PEM private key"),
    ("no authority", "--tls-client-ca {authority}: it contains no PEM certificate"),
])  # fmt: skip
def test_files_that_cannot_be_used_keep_it_from_starting(
    tmp_path: Path, damage: str, says: str
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    if damage == "encrypted":
        found = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(
            found.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
    elif damage == "of another":
        shutil.copy(authority.issue("other")[1], key)
    elif damage == "missing":
        key.unlink()
    else:
        wrong = {"certificate": certificate, "key": key, "authority": authority.path}
        wrong[damage.removeprefix("no ")].write_text("nothing")
    named = says.format(certificate=certificate, key=key, authority=authority.path)
    with pytest.raises(ConfigError, match=named):
        ServerTls(certificate, key, authority.path)


class Growing(PosixPath):
    """A file that somebody writes whenever it is read."""

    def read_bytes(self) -> bytes:
        content = super().read_bytes()
        with self.open("ab") as file:
            file.write(b"\n")
        return content


def test_files_that_change_while_they_are_read_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = Authority(tmp_path).issue("server")
    with pytest.raises(ConfigError, match="change"):
        ServerTls(certificate, Growing(key), None)
    tls = ServerTls(certificate, key, None)
    changes: list[bool] = []
    tls.on_change = lambda: changes.append(True)
    key.touch()
    tls.key = Growing(key)
    tls.refresh()
    assert "keeping the current one" in caplog.messages[-1]
    assert changes == []
    tls.key = key
    tls.refresh()
    assert changes == [True]


async def shown(port: int, authority: Authority) -> str:
    """Return the certificate, as PEM, that a server shows to who connects now."""
    context = ssl.create_default_context(cafile=authority.path)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(raw)


async def test_every_handshake_takes_what_was_read_last(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first, second = authority.issue("first"), authority.issue("second")
    used = [Path(shutil.copy(path, tmp_path / f"used{path.suffix}")) for path in first]
    tls = ServerTls(used[0], used[1], None)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    await server.start()
    for _ in range(2):
        assert await shown(port, authority) == first[0].read_text()
    for source, target in zip(second, used, strict=True):
        shutil.copy(source, target)
    assert await shown(port, authority) == first[0].read_text()  # nobody looked at the files yet
    tls.refresh()
    for _ in range(2):
        assert await shown(port, authority) == second[0].read_text()
    await server.stop(None)


def test_a_handshake_loads_changed_files_once(tmp_path: Path) -> None:
    tls = ServerTls(*Authority(tmp_path).issue("server"), None)
    assert tls._newest() is None
    tls.key.touch()
    tls.refresh()
    assert tls._newest() is not None
    assert tls._newest() is None


def test_files_that_change_are_taken_in_and_what_is_wrong_with_them_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    tls = ServerTls(certificate, key, authority.path)
    changes: list[bool] = []
    tls.on_change = lambda: changes.append(True)
    tls.refresh()
    assert changes == []
    good = certificate.read_bytes()
    certificate.write_text("nothing")
    tls.refresh()
    tls.refresh()
    (warning,) = caplog.messages
    assert "keeping the current one" in warning
    certificate.unlink()
    tls.refresh()
    tls.refresh()
    assert f"{certificate}: No such file" in caplog.messages[1]
    assert len(caplog.messages) == 2
    certificate.write_bytes(good)
    later = certificate.stat().st_mtime_ns + 1_000_000_000
    os.utime(certificate, ns=(later, later))
    with caplog.at_level(logging.INFO):
        tls.refresh()
    assert changes == [True]
    assert caplog.messages[-1] == "certificate reloaded"
