"""A signature stands for the manifest and every tensor, and for nothing else."""

import json
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from loramux_adapters import PackageError, open_package
from loramux_adapters.package import digest_of
from loramux_adapters.signing import check_signature, new_key, read_public_keys
from tests.support.command_line import Loramux, Result

Content = dict[str, Any]


@pytest.fixture
def signed(loramux: Loramux, poet: Path) -> Path:
    """A signed package; `key` and `key.pub` lie beside it, and the unsigned one as `plain`."""
    assert loramux("sign", "--new-key", "key").code == 0
    assert loramux("pack", "poet", "-o", "plain").code == 0
    assert loramux("sign", "plain", "--key", "key", "-o", "signed").code == 0
    return poet.with_name("signed")


def test_a_signed_package_is_verified_with_the_public_key(loramux: Loramux, signed: Path) -> None:
    done = loramux("verify", "signed", "--key", "key.pub", "--json")
    assert done.code == 0
    assert json.loads(done.output)["signature"].startswith("by ")
    unchecked = json.loads(loramux("verify", "signed", "--json").output)
    assert unchecked["signature"] == "not checked; use --key"


def test_signing_is_reproducible_and_may_be_repeated(loramux: Loramux, signed: Path) -> None:
    before = signed.read_bytes()
    loramux("sign", "signed", "--key", "key")
    assert signed.read_bytes() == before != Path("plain").read_bytes()
    loramux("sign", "poet", "--key", "key", "-o", "again")
    assert Path("again").read_bytes() == before


def test_only_the_manifest_differs(signed: Path) -> None:
    with open_package(signed) as (_, one), open_package(signed.with_name("plain")) as (_, other):
        assert one.modules == other.modules
        assert one.peft_config == other.peft_config
        assert one.notes.keys() == {"tensors", "signature"}
        assert other.notes == {}


def test_a_signed_folder_becomes_a_package_beside_it(loramux: Loramux, signed: Path) -> None:
    digest = loramux("verify", "signed", "--json").output
    done = loramux("sign", "poet", "--key", "key")
    assert done.output.split() == ["poet.safetensors", json.loads(digest)["digest"]]


def test_a_signature_survives_unpacking(loramux: Loramux, signed: Path) -> None:
    loramux("unpack", "signed", "-o", "folder")
    loramux("pack", "folder", "-o", "again")
    assert Path("again").read_bytes() == signed.read_bytes()
    assert loramux("verify", "folder", "--key", "key.pub").code == 0


def test_a_converted_package_is_not_signed(loramux: Loramux, signed: Path) -> None:
    loramux("convert", "signed", "-o", "low", "--dtype", "bfloat16")
    done = loramux("verify", "low", "--key", "key.pub")
    assert done == Result(1, "", "loramux: the package is not signed\n")


def changed(path: Path, change: Callable[[Content, Content], None]) -> Path:
    """Write the package `path` with header and manifest changed, as a forger would."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["loramux.manifest"])
    change(header, manifest)
    header["__metadata__"]["loramux.manifest"] = json.dumps(manifest)
    raw = json.dumps(header).encode()
    forged = path.with_name("forged")
    forged.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])
    return forged


def other_alpha(_: Content, manifest: Content) -> None:
    manifest["peft_config"]["lora_alpha"] = 5


def other_licence(_: Content, manifest: Content) -> None:
    manifest["licence"] = "MIT"


def no_digests(_: Content, manifest: Content) -> None:
    del manifest["tensors"]


def other_dtype(header: Content, _: Content) -> None:
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F16":
            entry["dtype"] = "BF16"


def other_value(_: Content, manifest: Content) -> None:
    value = manifest["signature"]["value"]
    manifest["signature"]["value"] = value[:-1] + ("0" if value[-1] != "0" else "1")


def no_hex(_: Content, manifest: Content) -> None:
    manifest["signature"]["value"] = "no hex"


def malformed(_: Content, manifest: Content) -> None:
    del manifest["signature"]["algorithm"]


def other_algorithm(_: Content, manifest: Content) -> None:
    manifest["signature"]["algorithm"] = "none"


CHANGED = "the signature does not match: the manifest was changed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_alpha, CHANGED),
        (other_licence, CHANGED),
        (no_digests, CHANGED),
        (other_value, CHANGED),
        (no_hex, CHANGED),
        (other_dtype, "the tensor was changed after packing"),
        (malformed, "is malformed"),
        (other_algorithm, "the signature has algorithm 'none'; expected ed25519"),
    ],
)
def test_a_change_is_found(change: Any, message: str, loramux: Loramux, signed: Path) -> None:
    forged = changed(signed, change)
    done = loramux("verify", str(forged), "--key", "key.pub")
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors


def test_a_flipped_bit_of_a_tensor_is_found(signed: Path) -> None:
    content = bytearray(signed.read_bytes())
    content[-1] ^= 1
    signed.write_bytes(content)
    with (
        open_package(signed) as (file, package),
        pytest.raises(PackageError, match="the tensor was changed after packing"),
    ):
        check_signature(file, package, read_public_keys([signed.with_name("key.pub")]))


def test_spaces_and_the_order_of_keys_are_no_change(signed: Path, loramux: Loramux) -> None:
    def reordered(_: Content, manifest: Content) -> None:
        items = list(manifest["peft_config"].items())
        manifest["peft_config"] = dict(reversed(items))

    assert changed(signed, reordered).read_bytes() != signed.read_bytes()
    assert loramux("verify", "forged", "--key", "key.pub").code == 0


def test_another_key_is_named(loramux: Loramux, signed: Path) -> None:
    public = loramux("sign", "--new-key", "other").output.split()[1]
    done = loramux("verify", "signed", "--key", "other.pub")
    assert done.code == 1
    assert named_key(done.errors) == public


def named_key(message: str) -> str:
    return message.rstrip().rpartition(", not ")[2]


def test_a_forger_who_names_the_key_is_found(loramux: Loramux, signed: Path) -> None:
    loramux("sign", "--new-key", "other")
    loramux("sign", "plain", "--key", "other", "-o", "fake")
    public = json.loads(signed_note(signed))["public_key"]

    def claim(_: Content, manifest: Content) -> None:
        manifest["signature"]["public_key"] = public

    done = loramux("verify", str(changed(Path("fake").resolve(), claim)), "--key", "key.pub")
    assert (done.code, CHANGED in done.errors) == (1, True)


def signed_note(path: Path) -> str:
    with open_package(path) as (_, package):
        return json.dumps(package.notes["signature"])


def test_any_ed25519_can_check_it(signed: Path) -> None:
    content = signed.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = json.loads(content[8 : 8 + length])["__metadata__"]["loramux.manifest"]
    manifest = json.loads(text)
    signature = manifest.pop("signature")
    message = "loramux package, manifest version 1\n" + json.dumps(manifest, separators=(",", ":"))
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["public_key"]))
    public.verify(bytes.fromhex(signature["value"]), message.encode())  # raises if it is not


def test_a_private_key_is_for_its_owner_and_is_never_replaced(tmp_path: Path) -> None:
    key = tmp_path / "key"
    new_key(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for gone in (None, "key", "key.pub"):
        if gone:
            (tmp_path / gone).unlink()
        with pytest.raises(FileExistsError, match="keys are not overwritten"):
            new_key(key)
        if gone:
            (tmp_path / gone).write_bytes(before[tmp_path / gone])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sign plain --key key.pub", "key.pub is not an Ed25519 private key in PEM"),
        ("sign plain --key absent", "absent: No such file or directory"),
        ("sign key --key key", "is above the limit of 1048576 bytes"),
        ("verify signed --key key", "key is not an Ed25519 public key in PEM"),
        ("verify plain --key key.pub", "the package is not signed"),
        ("sign --new-key key", "key.pub exists already; keys are not overwritten"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, message: str, loramux: Loramux, signed: Path
) -> None:
    with signed.with_name("plain").open("rb") as file:
        before = digest_of(file)
    done = loramux(*arguments.split())
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors
    with signed.with_name("plain").open("rb") as file:
        assert digest_of(file) == before


@pytest.mark.parametrize(
    "arguments", ["sign", "sign plain", "sign --key key", "sign plain --new-key other"]
)
def test_wrong_usage_exits_2(arguments: str, loramux: Loramux, signed: Path) -> None:
    assert loramux(*arguments.split()).code == 2
    assert not Path("other").exists()
