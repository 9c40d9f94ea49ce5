"""A server that takes packages of trusted signers alone."""

import shutil
from pathlib import Path

import pytest

from loramux.errors import InvalidArgumentError
from loramux_adapters import open_package, pack
from loramux_adapters.signing import new_key, sign
from loramux_server.config import ConfigError, make_config
from loramux_server.origins import signers_of
from tests.support.server import RunningServer


def signed(folder: Path, key: Path, path: Path) -> Path:
    """Pack a PEFT folder as `path`, signed with `key`."""
    plain = path.with_name("plain")
    with plain.open("w+b") as output:
        pack(folder, output)
    with open_package(plain) as (file, package), path.open("w+b") as output:
        sign(file, package, key, output)
    plain.unlink()
    return path


def test_what_a_trusted_signer_signed_is_served_and_nothing_else(
    tmp_path: Path, tiny_base: Path, tiny_adapters: Path
) -> None:
    for name in ("ours", "theirs", "stranger"):
        new_key(tmp_path / name)
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    shutil.copytree(tiny_adapters / "small", adapters / "bare")
    signed(tiny_adapters / "small", tmp_path / "ours", adapters / "good.safetensors")
    trusted = [
        part for name in ("ours", "theirs")
        for part in ("--trusted-signer", str(tmp_path / f"{name}.pub"))
    ]  # fmt: skip
    arguments = ("--adapters", str(adapters), *trusted)
    with RunningServer(tmp_path, tiny_base, *arguments) as server, server.client() as client:
        assert [adapter.name for adapter in client.adapters.list()] == ["good"]
        assert "bare is skipped: the package is not signed" in server.log.read_text()
        package = signed(tiny_adapters / "small", tmp_path / "theirs", tmp_path / "a.safetensors")
        assert client.adapters.upload("uploaded", package).version == 1
        strange = signed(tiny_adapters / "small", tmp_path / "stranger", tmp_path / "b.safetensors")
        content = bytearray(package.read_bytes())
        content[-1] ^= 1
        forged = tmp_path / "c.safetensors"
        forged.write_bytes(content)
        for source, said in (
            (
                tiny_adapters / "small",
                "the package is not signed; this server accepts only packages",
            ),
            (strange, "is signed with key"),
            (forged, "the tensor was changed after packing"),
        ):
            with pytest.raises(InvalidArgumentError, match=said) as caught:
                client.adapters.upload("refused", source)
            assert caught.value.reason == "SIGNATURE_REQUIRED"
        assert {adapter.name for adapter in client.adapters.list()} == {"good", "uploaded"}


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    for path, said in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "key", "not an Ed25519 public"),
    ):
        config = make_config({"model": "", "trusted_signer": [str(path)]})
        with pytest.raises(ConfigError, match=f"--trusted-signer.*{path}.*{said}"):
            signers_of(config)
