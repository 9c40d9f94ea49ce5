"""Which files of certificates a server takes, at its start and while it runs."""

import logging
import os
import shutil
from pathlib import Path

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
    ("encrypted", "the key is encrypted"),
    ("of another", "key values mismatch"),
    ("missing", "No such file"),
    ("no PEM", "not PEM|no start line"),
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
        certificate.write_text("nothing")
    with pytest.raises(ConfigError, match=says) as caught:
        ServerTls(certificate, key, authority.path)
    assert f"--tls-client-ca {authority.path} cannot be used" in str(caught.value)


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
    assert "the certificate in use stays" in warning
    certificate.write_bytes(good)
    later = certificate.stat().st_mtime_ns + 1_000_000_000
    os.utime(certificate, ns=(later, later))
    with caplog.at_level(logging.INFO):
        tls.refresh()
    assert changes == [True]
    assert caplog.messages[-1] == "the certificate was read again"
